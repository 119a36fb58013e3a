//! What can be configured of a snapshot folder.

use hutong_config::{Read, Table, Value, read};
use std::{path::PathBuf, time::Duration};

/// How the files of the folder are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// See [`super::parse_risk_levels`].
    RiskLevels,
}

/// What counts as the time at which a row was committed at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommittedAt {
    /// The time that the file says.
    File,
    /// When the file was read: for replays that measure.
    Now,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub dir: PathBuf,
    pub format: Format,
    /// Only areas of these provinces, by the names that the files use; all when empty.
    pub provinces: Vec<String>,
    /// How often the folder is looked at.
    pub poll: Duration,
    /// Also look when the operating system says that something changed.
    pub notify: bool,
    /// A file that cannot be read as a list and changed less than this ago is still being written.
    pub settle: Duration,
    /// Files with a greater name are left alone.
    pub until: Option<String>,
    /// Nothing comes after the files that are there: for replays.
    pub once: bool,
    pub committed_at: CommittedAt,
    /// The share of all areas that may vanish from one file to the next; 1 allows everything.
    pub shrink_max: f64,
    /// Files that were looked at and may shrink as they like.
    pub accept_shrink: Vec<String>,
}

impl Settings {
    /// The defaults.
    pub fn new(dir: impl Into<PathBuf>, format: Format) -> Settings {
        Settings {
            dir: dir.into(),
            format,
            provinces: Vec::new(),
            poll: Duration::from_secs(1),
            notify: true,
            settle: Duration::from_secs(2),
            until: None,
            once: false,
            committed_at: CommittedAt::File,
            shrink_max: 0.5,
            accept_shrink: Vec::new(),
        }
    }

    /// Reads `[source]`.
    pub fn read(table: &mut Table<'_>) -> Option<Settings> {
        let formats = read::one_of(&[("risk-levels", Format::RiskLevels)]);
        let moments = [("file", CommittedAt::File), ("now", CommittedAt::Now)];
        let polls = read::duration(Duration::from_millis(10)..=Duration::from_secs(3600));
        let settles = read::duration(Duration::ZERO..=Duration::from_secs(600));
        let default = Settings::new("", Format::RiskLevels);

        let dir = table.required("dir");
        let format = table.required_as("format", formats);
        let settings = Settings {
            dir: PathBuf::new(),
            format: Format::RiskLevels,
            provinces: table.with_default_as("province", Vec::new(), one_or_more),
            poll: table.with_default_as("poll", default.poll, polls),
            notify: table.with_default("notify", default.notify),
            settle: table.with_default_as("settle", default.settle, settles),
            until: table.optional_as("until", read::text(1..=255)),
            once: table.with_default("once", default.once),
            committed_at: table.with_default_as(
                "committed_at",
                default.committed_at,
                read::one_of(&moments),
            ),
            shrink_max: table.with_default_as("shrink_max", default.shrink_max, share),
            accept_shrink: table.with_default_as("accept_shrink", Vec::new(), one_or_more),
        };
        Some(Settings {
            dir: dir?,
            format: format?,
            ..settings
        })
    }
}

/// `"a"` or `["a", "b"]`.
fn one_or_more(value: &Value<'_>) -> Option<Vec<String>> {
    let text = read::text(1..=255);
    match value.as_list() {
        Some(_) => read::list(text, 1..=64)(value),
        None => text(value).map(|one| vec![one]),
    }
}

fn share(value: &Value<'_>) -> Option<f64> {
    let share = f64::read(value)?;
    if (0.0..=1.0).contains(&share) {
        return Some(share);
    }
    value.fail_expected(
        "a share from 0 to 1",
        "0.5 allows half of the areas to vanish at once",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_config::Document;

    #[test]
    fn everything_can_be_set() {
        let doc = Document::parse(
            "c.toml",
            "dir = \"in\"\nformat = \"risk-levels\"\nprovince = \"安徽省\"\npoll = \"5s\"\nnotify = false\n\
             settle = \"1s\"\nuntil = \"b.json\"\nonce = true\ncommitted_at = \"now\"\nshrink_max = 0.9\n\
             accept_shrink = [\"a.json\", \"b.json\"]\n",
        );
        let settings = Settings::read(&mut doc.root());
        let settings = doc.finish(settings).expect("valid");
        let expected = Settings {
            provinces: vec!["安徽省".into()],
            poll: Duration::from_secs(5),
            notify: false,
            settle: Duration::from_secs(1),
            until: Some("b.json".into()),
            once: true,
            committed_at: CommittedAt::Now,
            shrink_max: 0.9,
            accept_shrink: vec!["a.json".into(), "b.json".into()],
            ..Settings::new("in", Format::RiskLevels)
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn mistakes_are_reported_together() {
        let doc = Document::parse(
            "c.toml",
            "format = \"risklevels\"\nshrink_max = 2\npoll = \"0s\"\nprovince = []\n",
        );
        let settings = Settings::read(&mut doc.root());
        let errors = doc.finish(settings).expect_err("five mistakes");
        assert_eq!(errors.count(), 5, "{errors}");
    }
}
