//! The page's own files, compiled in: nothing is fetched from anywhere else.

use axum::{
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use std::sync::OnceLock;

/// Name, content type, bytes.
type Asset = (&'static str, &'static str, &'static [u8]);

const JS: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";

macro_rules! asset {
    ($name:literal, $kind:expr) => {
        ($name, $kind, include_bytes!(concat!("assets/", $name)))
    };
}

/// What others wrote, byte for byte as they publish it; its name says which version.
macro_rules! vendored {
    ($name:literal, $kind:expr) => {
        (
            $name,
            $kind,
            include_bytes!(concat!("assets/vendor/", $name)),
        )
    };
}

const ASSETS: &[Asset] = &[
    asset!("index.html", "text/html; charset=utf-8"),
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    asset!("words.en.json", JSON),
    asset!("words.zh.json", JSON),
    asset!("main.js", JS),
    asset!("dom.js", JS),
    asset!("words.js", JS),
    asset!("format.js", JS),
    asset!("live.js", JS),
    asset!("overview.js", JS),
    asset!("matrix.js", JS),
    asset!("platform.js", JS),
    asset!("rates.js", JS),
    asset!("chart.js", JS),
    asset!("find.js", JS),
    asset!("refused.js", JS),
    asset!("drills.js", JS),
    vendored!("uPlot-1.6.32.iife.min.js", JS),
    vendored!("uPlot-1.6.32.min.css", "text/css; charset=utf-8"),
    // Its licence wants to be with every copy.
    vendored!("uPlot-LICENSE.txt", "text/plain; charset=utf-8"),
];

/// Of all files together: who does not change after an upgrade must not mix old files and new ones.
fn tag() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| {
        let mut hash = Sha256::new();
        ASSETS.iter().for_each(|(_, _, bytes)| hash.update(bytes));
        let hash = hash.finalize();
        let hex: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
        format!("\"{hex}\"")
    })
}

pub async fn index(headers: HeaderMap) -> Response {
    serve("index.html", &headers)
}

pub async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    serve(&name, &headers)
}

fn serve(name: &str, headers: &HeaderMap) -> Response {
    let Some((_, kind, bytes)) = ASSETS.iter().find(|(known, _, _)| *known == name) else {
        return (StatusCode::NOT_FOUND, "the console has no such page\n").into_response();
    };
    // Asked again each time, and answered with nothing as long as it is the same.
    let caching = [(header::ETAG, tag()), (header::CACHE_CONTROL, "no-cache")];
    let known = headers.get(header::IF_NONE_MATCH);
    if known.is_some_and(|known| known.as_bytes() == tag().as_bytes()) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    (caching, [(header::CONTENT_TYPE, *kind)], *bytes).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::{
        collections::{BTreeMap, BTreeSet},
        str,
    };

    const BYTES_MAX: usize = 300 << 10;

    fn text(name: &str) -> &'static str {
        let found = ASSETS.iter().find(|(known, _, _)| *known == name);
        str::from_utf8(found.expect("an asset").2).expect("UTF-8")
    }

    /// What others wrote: from `npm pack uplot@1.6.32`, `dist/` and `LICENSE` of it.
    const VENDORED: &[(&str, &str)] = &[
        (
            "uPlot-1.6.32.iife.min.js",
            "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
        ),
        (
            "uPlot-1.6.32.min.css",
            "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
        ),
        (
            "uPlot-LICENSE.txt",
            "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
        ),
    ];

    fn is_vendored(name: &str) -> bool {
        VENDORED.iter().any(|(known, _)| *known == name)
    }

    /// Our own.
    fn scripts() -> impl Iterator<Item = (&'static str, &'static str)> {
        let names = ASSETS.iter().map(|(name, _, _)| *name);
        let own = names.filter(|n| n.ends_with(".js") && !is_vendored(n));
        own.map(|n| (n, text(n)))
    }

    fn words(name: &str) -> BTreeMap<String, String> {
        let value: Value = serde_json::from_str(text(name)).expect("JSON");
        let object = value.as_object().expect("an object");
        let word = |v: &Value| v.as_str().expect("a text").to_owned();
        object.iter().map(|(k, v)| (k.clone(), word(v))).collect()
    }

    /// What stands in braces.
    fn places(text: &str) -> BTreeSet<&str> {
        let parts = text.split('{').skip(1);
        parts.filter_map(|part| part.split('}').next()).collect()
    }

    #[test]
    fn the_page_is_small() {
        let bytes: usize = ASSETS.iter().map(|(_, _, bytes)| bytes.len()).sum();
        assert!(bytes < BYTES_MAX, "{bytes} bytes");
    }

    #[test]
    fn what_others_wrote_is_as_they_published_it_with_its_licence() {
        for (name, published) in VENDORED {
            let hash = Sha256::digest(text(name).as_bytes());
            let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, *published, "{name}");
        }
        assert!(text("uPlot-LICENSE.txt").contains("MIT License"));
        let page = text("index.html");
        for (name, _) in VENDORED.iter().filter(|(name, _)| !name.ends_with(".txt")) {
            assert!(page.contains(&format!("\"{name}\"")), "{name}");
        }
    }

    #[test]
    fn both_languages_say_the_same_things() {
        let (en, zh) = (words("words.en.json"), words("words.zh.json"));
        let keys = |words: &BTreeMap<String, String>| words.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&en), keys(&zh));
        for (key, english) in &en {
            let chinese = &zh[key];
            assert_eq!(places(english), places(chinese), "{key}");
            assert!(
                !english.trim().is_empty() && !chinese.trim().is_empty(),
                "{key}"
            );
        }
        // What is the same in both is a unit or a name, or was forgotten.
        let same: Vec<_> = en.iter().filter(|(key, word)| zh[*key] == **word).collect();
        assert!(same.len() <= 2, "{same:?}");
    }

    /// The text that begins a call of `t`, up to its quote.
    fn asked(script: &str) -> impl Iterator<Item = &str> {
        let calls = script.split(" t(\"").skip(1);
        let others = script.split("(t(\"").skip(1);
        let more = script.split("[t(\"").skip(1);
        let inside = script.split("{t(\"").skip(1);
        calls
            .chain(others)
            .chain(more)
            .chain(inside)
            .filter_map(|rest| rest.split('"').next())
    }

    #[test]
    fn every_word_that_is_asked_for_is_there_and_none_is_left_over() {
        let en = words("words.en.json");
        let mut used = BTreeSet::new();
        for (name, script) in scripts() {
            for key in asked(script) {
                // A key that ends in a dot is put together with what an answer says.
                let known = match key.ends_with('.') {
                    true => en.keys().any(|k| k.starts_with(key)),
                    false => en.contains_key(key),
                };
                assert!(known, "{name}: {key} is in no dictionary");
                used.insert(key.to_owned());
            }
        }
        for page in text("index.html").split("data-word=\"").skip(1) {
            used.extend(page.split('"').next().map(str::to_owned));
        }
        let is_used = |key: &String| {
            used.iter()
                .any(|u| u == key || (u.ends_with('.') && key.starts_with(u.as_str())))
        };
        let unused: Vec<_> = en.keys().filter(|key| !is_used(key)).collect();
        assert!(unused.is_empty(), "{unused:?}");
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_no_script_or_style_stands_in_the_page() {
        for (name, _, bytes) in ASSETS {
            let text = str::from_utf8(bytes).expect("UTF-8");
            let outside = text.replace("http://www.w3.org/", "");
            // In a comment: where it is from.
            let outside = match is_vendored(name) {
                true => outside.replace("https://github.com/leeoniya/uPlot", ""),
                false => outside,
            };
            assert!(
                !outside.contains("http://") && !outside.contains("https://"),
                "{name}"
            );
            assert!(!text.contains("innerHTML"), "{name}");
        }
        let page = text("index.html");
        for forbidden in ["<style", "style=", "onclick=", "<script>"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }

    #[test]
    fn every_module_says_what_it_is_for_and_imports_what_is_there() {
        for (name, script) in scripts() {
            assert!(
                script.starts_with("// "),
                "{name}: open it with what it is for"
            );
            for import in script.split(" from \"./").skip(1) {
                let other = import.split('"').next().expect("a name");
                assert!(
                    ASSETS.iter().any(|(known, _, _)| *known == other),
                    "{name}: {other}"
                );
            }
        }
    }

    #[test]
    fn every_state_and_role_of_a_connector_has_a_word() {
        use hutong_proto::api::{ConnectorRole, ConnectorState};
        let en = words("words.en.json");
        let states = (1..).map_while(|n| ConnectorState::try_from(n).ok());
        let roles = (1..).map_while(|n| ConnectorRole::try_from(n).ok());
        let names = states.map(|state| state.as_str_name());
        let names: Vec<_> = names.chain(roles.map(|role| role.as_str_name())).collect();
        assert!(names.len() > 7, "{names:?}");
        for name in names {
            assert!(en.contains_key(&format!("connector.{name}")), "{name}");
        }
    }

    #[test]
    fn every_reason_of_a_finding_has_a_text_and_an_advice() {
        use crate::console::judge::Why;
        let en = words("words.en.json");
        for why in [
            Why::Compacted,
            Why::NeverStarted,
            Why::NotConnected,
            Why::InSnapshot,
            Why::NotTaking,
            Why::NotApplying,
            Why::Slow,
            Why::NotSubscribed,
            Why::NoProducer,
            Why::ConnectorFailed,
            Why::ConnectorSilent,
            Why::LogPoisoned,
        ] {
            let name = serde_json::to_value(why).expect("a word");
            let name = name.as_str().expect("a word");
            for key in [format!("why.{name}"), format!("do.{name}")] {
                assert!(en.contains_key(&key), "{key}");
            }
        }
    }
}
