//! Takes out of a configuration what nobody else may read.

use toml::{Table, Value};

const REMOVED: &str = "(removed)";
/// A key with one of these in its name holds a secret, or says where one is.
const SECRET_WORDS: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "private",
    "key",
    "cookie",
];

/// The same configuration without its secrets. Comments go too: people write passwords into them.
pub fn without_secrets(text: &str) -> Result<String, String> {
    // An error of the parser would quote the line.
    let mut table: Table = text
        .parse()
        .map_err(|_| "it is no TOML, so it is not known what in it is secret".to_owned())?;
    clean(&mut table);
    toml::to_string(&table).map_err(|error| error.to_string())
}

fn clean(table: &mut Table) {
    for (key, value) in table.iter_mut() {
        let name = key.to_ascii_lowercase();
        if SECRET_WORDS.iter().any(|word| name.contains(word)) {
            *value = Value::String(REMOVED.to_owned());
        } else {
            clean_value(value);
        }
    }
}

fn clean_value(value: &mut Value) {
    match value {
        Value::Table(table) => clean(table),
        Value::Array(all) => all.iter_mut().for_each(clean_value),
        Value::String(text) => {
            if text.contains("-----BEGIN") {
                REMOVED.clone_into(text);
            } else {
                *text = without_user(text);
            }
        }
        _ => {}
    }
}

/// `scheme://user:password@host` without user and password, and without what follows a question mark.
fn without_user(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        // Words and values, as libpq has them, with spaces around the sign or not.
        return match text.to_ascii_lowercase().contains("password") {
            true => REMOVED.to_owned(),
            false => text.to_owned(),
        };
    };
    // The last sign: a password may have one in it, and a slash as well.
    let (user, rest) = match rest.rsplit_once('@') {
        Some((_, rest)) => ("(removed)@", rest),
        None => ("", rest),
    };
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    format!("{scheme}://{user}{}", &rest[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_gone_wherever_they_stand_and_the_rest_stays() {
        let text = r#"
            identity = "trial"  # the old password was hunter1
            [source]
            type = "postgres-outbox"
            url = "postgres://app:hunter2@db.example:5432/codes?password=hunter3"
            password_file = "/etc/hutong/hunter4"
            dsn = "host=db user=app password=hunter5"
            [pseudonym]
            key_file = "hunter6"
            epoch = 1
            [[sinks]]
            Api-Token = "hunter7"
            pem = """-----BEGIN EC-----
            hunter8"""
            list = ["http://u:hunter9@h", "plain"]
        "#;
        let clean = without_secrets(text).expect("TOML");
        assert!(!clean.contains("hunter"), "{clean}");
        for kept in [
            "identity = \"trial\"",
            "type = \"postgres-outbox\"",
            "postgres://(removed)@db.example:5432/codes\"",
            "epoch = 1",
            "plain",
        ] {
            assert!(clean.contains(kept), "{kept}: {clean}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_shown_in_part() {
        let error = without_secrets("password = hunter2").expect_err("no TOML");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
