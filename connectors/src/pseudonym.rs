//! Keyed pseudonyms: an ID number enters, 16 bytes come out, and nobody without the key gets back.
//!
//! The pseudonym is the first 16 bytes of `HMAC(key, epoch || number)`: `epoch` is one byte, `number`
//! the ID number in ASCII without surrounding white space, letters in upper case. HMAC is RFC 2104
//! over SM3 (GB/T 32905) or SHA-256. Platforms that share key, algorithm and epoch get the same
//! pseudonym for the same person; a new epoch makes all pseudonyms new.
//!
//! Neither the key nor an ID number ever stands in an error, a log or a `Debug` text.

use hmac::{Hmac, KeyInit, Mac};
use hutong_proto::EntityId;
use sha2::Sha256;
use sm3::Sm3;
use std::{fmt, fs, io, os::unix::fs::PermissionsExt, path::Path, path::PathBuf};

/// A key shorter than its hash is weaker than it; one longer than a block is hashed first, for nothing.
const KEY_BYTES_MIN: usize = 32;
const KEY_BYTES_MAX: usize = 64;
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// The longest number of any kind of document, with room to spare.
const ID_NUMBER_BYTES_MAX: usize = 32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    #[default]
    HmacSm3,
    HmacSha256,
}

impl Algorithm {
    /// By the words that configuration uses.
    pub const WORDS: [(&'static str, Algorithm); 2] = [
        ("hmac-sm3", Algorithm::HmacSm3),
        ("hmac-sha256", Algorithm::HmacSha256),
    ];
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(
        "cannot read the pseudonym key {file}: {error}; write one with: openssl rand -hex 32 > FILE; chmod 600 FILE"
    )]
    Unreadable { file: String, error: io::Error },
    #[error(
        "the pseudonym key {file} is not {} to {} hexadecimal digits; write one with: openssl rand -hex 32",
        KEY_BYTES_MIN * 2,
        KEY_BYTES_MAX * 2
    )]
    Malformed { file: String },
}

/// What is wrong with an ID number. Never holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdNumberError {
    #[error("the ID number is empty")]
    Empty,
    #[error("the ID number has more than {ID_NUMBER_BYTES_MAX} characters")]
    TooLong,
    #[error(
        "the ID number has characters other than digits, letters, hyphen and brackets of ASCII"
    )]
    Characters,
}

/// Makes pseudonyms with one key.
#[derive(Clone)]
pub struct Pseudonymiser {
    keyed: Keyed,
    epoch: u8,
}

/// With the key mixed in already, so that it is not kept.
#[derive(Clone)]
enum Keyed {
    Sm3(Hmac<Sm3>),
    Sha256(Hmac<Sha256>),
}

impl fmt::Debug for Pseudonymiser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pseudonymiser")
            .field("key", &"redacted")
            .field("epoch", &self.epoch)
            .finish()
    }
}

impl Pseudonymiser {
    /// `key` may have any length here; a key file must have 32 to 64 bytes.
    pub fn new(algorithm: Algorithm, key: &[u8], epoch: u8) -> Pseudonymiser {
        const ANY: &str = "an HMAC takes keys of any length";
        let keyed = match algorithm {
            Algorithm::HmacSm3 => Keyed::Sm3(KeyInit::new_from_slice(key).expect(ANY)),
            Algorithm::HmacSha256 => Keyed::Sha256(KeyInit::new_from_slice(key).expect(ANY)),
        };
        Pseudonymiser { keyed, epoch }
    }

    /// The pseudonym of the holder of an ID number.
    pub fn person(&self, id_number: &str) -> Result<EntityId, IdNumberError> {
        let number = normalise(id_number)?;
        let mac = match &self.keyed {
            Keyed::Sm3(mac) => finish(mac.clone(), self.epoch, &number),
            Keyed::Sha256(mac) => finish(mac.clone(), self.epoch, &number),
        };
        Ok(EntityId(mac))
    }
}

fn finish(mut mac: impl Mac, epoch: u8, number: &str) -> [u8; 16] {
    mac.update(&[epoch]);
    mac.update(number.as_bytes());
    let whole = mac.finalize().into_bytes();
    std::array::from_fn(|i| whole[i])
}

fn normalise(id_number: &str) -> Result<String, IdNumberError> {
    let trimmed = id_number.trim();
    if trimmed.is_empty() {
        return Err(IdNumberError::Empty);
    }
    if trimmed.len() > ID_NUMBER_BYTES_MAX {
        return Err(IdNumberError::TooLong);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'(' | b')');
    if !trimmed.bytes().all(allowed) {
        return Err(IdNumberError::Characters);
    }
    Ok(trimmed.to_ascii_uppercase())
}

/// Where a key is, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PseudonymSettings {
    pub algorithm: Algorithm,
    pub key_file: PathBuf,
    pub epoch: u8,
}

impl PseudonymSettings {
    /// Reads the key. Others who may read it too are worth a warning: the second value.
    pub fn load(&self) -> Result<(Pseudonymiser, Option<String>), KeyError> {
        let file = || self.key_file.display().to_string();
        let (text, mode) = read_key_file(&self.key_file).map_err(|error| KeyError::Unreadable {
            file: file(),
            error,
        })?;
        let key = parse_key(&text).ok_or_else(|| KeyError::Malformed { file: file() })?;
        let warning = (mode & 0o007 != 0).then(|| {
            format!(
                "everyone on this machine may read the pseudonym key {0} (mode {1:03o}); run: chmod 600 {0}",
                file(),
                mode & 0o777
            )
        });
        Ok((
            Pseudonymiser::new(self.algorithm, &key, self.epoch),
            warning,
        ))
    }
}

fn read_key_file(path: &Path) -> io::Result<(Vec<u8>, u32)> {
    let meta = fs::metadata(path)?;
    if meta.len() > KEY_FILE_BYTES_MAX {
        return Err(io::Error::other("it is too large to be a key"));
    }
    Ok((fs::read(path)?, meta.permissions().mode()))
}

fn parse_key(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.trim_ascii();
    let bytes = digits.len() / 2;
    if !digits.len().is_multiple_of(2) || !(KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&bytes) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16);
    digits
        .chunks_exact(2)
        .map(|pair| u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sm3::Digest;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn hmac_sm3(key: &[u8], message: &[u8]) -> String {
        let mut mac: Hmac<Sm3> = KeyInit::new_from_slice(key).expect("any length");
        mac.update(message);
        hex(&mac.finalize().into_bytes())
    }

    fn ascending(n: u8) -> Vec<u8> {
        (0..n).collect()
    }

    #[test]
    fn sm3_gives_the_digest_of_the_standard() {
        // GB/T 32905-2016, annex A.1.
        assert_eq!(
            hex(&Sm3::digest(b"abc")),
            "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
        );
    }

    #[test]
    fn hmac_over_sm3_gives_the_values_of_the_standard() {
        // GM/T 0042-2015, annex D.3.
        let key: Vec<u8> = (1..=32).collect();
        let message = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq".repeat(2);
        assert_eq!(
            hmac_sm3(&key, &message),
            "ca05e144ed05d1857840d1f318a4a8669e559fc8391f414485bfdf7bb408963a"
        );
        let key: Vec<u8> = (1..=37).collect();
        assert_eq!(
            hmac_sm3(&key, &[0xcd; 50]),
            "220bf579ded555393f0159f66c99877822a3ecf610d1552154b41d44b94db3ae"
        );
    }

    #[test]
    fn pseudonyms_are_what_another_implementation_makes() {
        // From Python's hmac over hashlib's sm3 and sha256, the first checked with OpenSSL as well.
        let check = |algorithm, epoch, expected: &str| {
            let made = Pseudonymiser::new(algorithm, &ascending(32), epoch)
                .person("11010519491231002X")
                .expect("valid");
            assert_eq!(made.to_string(), expected);
        };
        check(Algorithm::HmacSm3, 1, "2ebb4b65a0e4adb32e86ba03402ef157");
        check(Algorithm::HmacSm3, 2, "5dc4c7abd6a16ba0df629fe940b1b34a");
        check(Algorithm::HmacSha256, 1, "31a082c11d37334e101d40611bd95e3b");
        check(Algorithm::HmacSha256, 2, "cd4c25d14b4318701d1fd63c43dd9a85");
    }

    #[test]
    fn writing_a_number_differently_makes_no_other_person() {
        let pseudonyms = Pseudonymiser::new(Algorithm::HmacSm3, &ascending(32), 1);
        let one = pseudonyms.person("11010519491231002X").expect("valid");
        for same in [" 11010519491231002X\r\n", "11010519491231002x"] {
            assert_eq!(pseudonyms.person(same), Ok(one));
        }
        assert_ne!(pseudonyms.person("110105194912310021"), Ok(one));
    }

    #[test]
    fn what_is_no_id_number_is_refused_without_repeating_it() {
        let pseudonyms = Pseudonymiser::new(Algorithm::HmacSm3, &ascending(32), 1);
        let check = |number: &str, expected| {
            let error = pseudonyms.person(number).expect_err("refused");
            assert_eq!(error, expected);
            assert!(number.trim().is_empty() || !error.to_string().contains(number.trim()));
        };
        check(" \t", IdNumberError::Empty);
        check("110105 19491231002X", IdNumberError::Characters);
        check("１１０１０５", IdNumberError::Characters);
        check(&"1".repeat(33), IdNumberError::TooLong);
    }

    #[test]
    fn debug_shows_no_key() {
        let pseudonyms = Pseudonymiser::new(Algorithm::HmacSm3, &[0xab; 32], 7);
        let text = format!("{pseudonyms:?}");
        assert_eq!(text, "Pseudonymiser { key: \"redacted\", epoch: 7 }");
    }

    #[test]
    fn a_key_file_holds_hexadecimal_digits_and_is_nobody_elses_business() {
        let dir = tempfile::tempdir().expect("a folder");
        let settings = PseudonymSettings {
            algorithm: Algorithm::HmacSm3,
            key_file: dir.path().join("key"),
            epoch: 1,
        };
        let error = settings.load().expect_err("no file").to_string();
        assert!(error.contains("openssl rand -hex 32"), "{error}");

        for wrong in [
            "",
            "abcd",
            &"g".repeat(64),
            &"a".repeat(63),
            &"a".repeat(130),
        ] {
            fs::write(&settings.key_file, wrong).expect("written");
            let error = settings.load().expect_err("malformed").to_string();
            assert!(error.contains("64 to 128 hexadecimal digits"), "{error}");
            assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
        }

        let key = hex(&ascending(32)).to_uppercase() + "\n";
        fs::write(&settings.key_file, key).expect("written");
        let mode = |mode| {
            fs::set_permissions(&settings.key_file, fs::Permissions::from_mode(mode)).expect("set");
        };
        mode(0o600);
        let (pseudonyms, warning) = settings.load().expect("a key");
        assert_eq!(warning, None);
        let made = pseudonyms.person("11010519491231002X").expect("valid");
        assert_eq!(made.to_string(), "2ebb4b65a0e4adb32e86ba03402ef157");
        mode(0o644);
        let warning = settings.load().expect("a key").1.expect("a warning");
        assert!(warning.contains("chmod 600"), "{warning}");
    }
}
