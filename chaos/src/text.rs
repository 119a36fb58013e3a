//! Texts for people, in English and Chinese: whoever makes one has to say both.

use crate::{clients::Register, history::Stream};
use serde::{Deserialize, Serialize};

/// A text in both languages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Text {
    pub en: String,
    pub zh: String,
}

impl Text {
    pub fn new(en: impl Into<String>, zh: impl Into<String>) -> Text {
        Text {
            en: en.into(),
            zh: zh.into(),
        }
    }

    /// Figures and names, which are the same in both.
    pub fn same(text: impl ToString) -> Text {
        Text::new(text.to_string(), text.to_string())
    }

    /// What a program, a library or the kernel said, in its own words.
    pub fn quoted(text: impl ToString) -> Text {
        let text = text.to_string();
        Text::new(&text, format!("「{text}」"))
    }

    /// One after the other.
    pub fn joined(texts: &[Text]) -> Text {
        let of = |language: fn(&Text) -> &str, between| {
            let words: Vec<_> = texts.iter().map(language).collect();
            words.join(between)
        };
        Text::new(of(|text| &text.en, "; "), of(|text| &text.zh, "；"))
    }

    pub fn is_same(&self) -> bool {
        self.en == self.zh
    }
}

/// How it stands in a file: older histories have one language.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Both { en: String, zh: String },
    One(String),
}

impl From<Written> for Text {
    fn from(written: Written) -> Text {
        match written {
            Written::Both { en, zh } => Text { en, zh },
            Written::One(text) => Text::quoted(text),
        }
    }
}

/// For a terminal, and for logs.
impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.en)
    }
}

impl From<(&str, &str)> for Text {
    fn from((en, zh): (&str, &str)) -> Text {
        Text::new(en, zh)
    }
}

/// What stands in a text, as each language says it.
pub trait Said {
    fn en(&self) -> String;
    fn zh(&self) -> String;
    /// One that a test recognises.
    #[cfg(test)]
    fn sample() -> Self;
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl From<$number> for Text {
            fn from(number: $number) -> Text {
                Text::same(number)
            }
        }

        impl Said for $number {
            fn en(&self) -> String {
                self.to_string()
            }

            fn zh(&self) -> String {
                self.to_string()
            }

            #[cfg(test)]
            fn sample() -> Self {
                42
            }
        }
    )*};
}
numbers!(i32 u32 u64 usize);

/// A name, or a figure with its unit.
impl Said for String {
    fn en(&self) -> String {
        self.clone()
    }

    fn zh(&self) -> String {
        self.clone()
    }

    #[cfg(test)]
    fn sample() -> Self {
        "§".to_owned()
    }
}

impl Said for Text {
    fn en(&self) -> String {
        self.en.clone()
    }

    fn zh(&self) -> String {
        self.zh.clone()
    }

    #[cfg(test)]
    fn sample() -> Self {
        Text::new("¶", "¶")
    }
}

impl Said for Stream {
    fn en(&self) -> String {
        self.name().to_owned()
    }

    fn zh(&self) -> String {
        let word = match self {
            Stream::Urgent => "紧急",
            Stream::Bulk => "批量",
            Stream::Flood => "涌入",
        };
        word.to_owned()
    }

    #[cfg(test)]
    fn sample() -> Self {
        Stream::Urgent
    }
}

impl Said for Register {
    fn en(&self) -> String {
        let stream = self.stream.en();
        format!("register {} of {} ({stream})", self.person, self.issuer)
    }

    fn zh(&self) -> String {
        let stream = self.stream.zh();
        format!("{} 的登记项 {}（{stream}）", self.issuer, self.person)
    }

    #[cfg(test)]
    fn sample() -> Self {
        Register {
            issuer: 42,
            stream: Stream::Urgent,
            person: 42,
        }
    }
}

/// A text with the name of its kind, which stays the same when words change: for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    pub kind: &'static str,
    pub en: String,
    pub zh: String,
}

impl Told {
    pub fn text(&self) -> Text {
        Text::new(&self.en, &self.zh)
    }
}

/// Declares kinds of texts, each with its fields, its name, and its words in English and Chinese. A field that
/// one language leaves out does not compile.
macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident {
        $($kind:ident { $($field:ident: $type:ty),* } = $code:literal, $en:literal, $zh:literal;)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub enum $name { $($kind { $($field: $type),* },)* }

        impl $name {
            /// Names of all kinds.
            pub const KINDS: &'static [&'static str] = &[$($code),*];

            #[allow(clippy::useless_format, reason = "some have no field")]
            pub fn told(&self) -> $crate::text::Told {
                match self {
                    $($name::$kind { $($field),* } => $crate::text::Told {
                        kind: $code,
                        en: {
                            $(let $field = $crate::text::Said::en($field);)*
                            format!($en)
                        },
                        zh: {
                            $(let $field = $crate::text::Said::zh($field);)*
                            format!($zh)
                        },
                    },)*
                }
            }

            /// One of each kind.
            #[cfg(test)]
            pub fn samples() -> Vec<$name> {
                vec![$($name::$kind { $($field: <$type as $crate::text::Said>::sample()),* }),*]
            }
        }
    };
}
pub(crate) use kinds;

/// Does it have Chinese in it?
pub fn has_chinese(text: &str) -> bool {
    text.contains(is_chinese)
}

pub fn is_chinese(c: char) -> bool {
    ('\u{4e00}'..='\u{9fff}').contains(&c)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Figures and names of samples, as often as they are there.
    fn values(text: &str) -> (usize, usize, usize) {
        let count = |value: &str| text.matches(value).count();
        (count("42"), count("§"), count("¶"))
    }

    /// What each kind must have: a name of its own, a text in both languages, and in both the same figures.
    pub fn are_whole(kinds: &[&str], told: &[Told]) {
        let mut names: Vec<_> = kinds.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), kinds.len(), "two kinds have one name");
        assert_eq!(told.len(), kinds.len());
        for one in told {
            let plain = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(one.kind.chars().all(plain), "{one:?}");
            assert!(!one.en.is_empty() && !has_chinese(&one.en), "{one:?}");
            assert!(has_chinese(&one.zh), "{one:?}");
            assert_eq!(values(&one.en), values(&one.zh), "{one:?}");
            // Left in English, except for what has no other name.
            let known = one.zh.replace("INV-", "");
            let letters = |w: &str| w.chars().filter(char::is_ascii_alphabetic).count();
            assert!(letters(&known) < 3, "{one:?}");
        }
    }

    #[test]
    fn what_a_program_said_is_quoted_in_chinese() {
        let text = Text::quoted("mount: no such device");
        assert_eq!(text.en, "mount: no such device");
        assert_eq!(text.zh, "「mount: no such device」");
    }
}
