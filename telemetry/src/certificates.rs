//! When a certificate expires: read from its file, for metrics. Nothing is verified here.
//!
//! The file is PEM (RFC 7468); the first certificate in it counts. Of its DER encoding (RFC 5280) only the way to
//! `notAfter` is read: Certificate, tbsCertificate, then version, serial number, algorithm and issuer are passed
//! over, and the second time of validity is it.

use std::{fs, io, path::Path};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A chain with its key is a few KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error("it is larger than 1 MiB")]
    TooLarge,
    #[error("there is no certificate in it: it must be PEM, with `{BEGIN}`")]
    NoPem,
    #[error("its certificate is damaged: {0}")]
    Damaged(&'static str),
}

/// In seconds since the Unix epoch.
pub fn not_after(file: &Path) -> Result<u64, CertificateError> {
    if fs::metadata(file)?.len() > FILE_BYTES_MAX {
        return Err(CertificateError::TooLarge);
    }
    of_pem(&fs::read_to_string(file)?)
}

fn of_pem(text: &str) -> Result<u64, CertificateError> {
    let (_, rest) = text.split_once(BEGIN).ok_or(CertificateError::NoPem)?;
    let (body, _) = rest.split_once(END).ok_or(CertificateError::NoPem)?;
    let der = base64(body).ok_or(CertificateError::Damaged("not base64"))?;
    of_der(&der).map_err(CertificateError::Damaged)
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for byte in text.bytes().filter(|b| !b.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

fn of_der(der: &[u8]) -> Result<u64, &'static str> {
    let (certificate, _) = value_of(der, SEQUENCE)?;
    let (tbs, _) = value_of(certificate, SEQUENCE)?;
    let (tag, _, after) = element(tbs)?;
    // The version is left out of the oldest kind.
    let mut rest = if tag == VERSION { after } else { tbs };
    for _ in ["serial number", "algorithm", "issuer"] {
        rest = element(rest)?.2;
    }
    let (validity, _) = value_of(rest, SEQUENCE)?;
    let (_, _, rest) = element(validity)?;
    let (tag, time, _) = element(rest)?;
    let time = std::str::from_utf8(time).map_err(|_| "a time that is no text")?;
    seconds(tag, time).ok_or("a time that cannot be read")
}

/// The value of an element with this tag, and what is behind it.
fn value_of(der: &[u8], tag: u8) -> Result<(&[u8], &[u8]), &'static str> {
    match element(der)? {
        (found, value, rest) if found == tag => Ok((value, rest)),
        _ => Err("an element of another kind than it should be"),
    }
}

/// Tag, value, and what is behind.
fn element(der: &[u8]) -> Result<(u8, &[u8], &[u8]), &'static str> {
    const CUT: &str = "it ends too soon";
    let (tag, rest) = der.split_first().ok_or(CUT)?;
    let (first, mut rest) = rest.split_first().ok_or(CUT)?;
    let mut len = usize::from(*first);
    if len >= 0x80 {
        let bytes = len & 0x7f;
        if bytes > 3 || rest.len() < bytes {
            return Err(CUT);
        }
        len = rest[..bytes]
            .iter()
            .fold(0, |n, b| (n << 8) | usize::from(*b));
        rest = &rest[bytes..];
    }
    if rest.len() < len {
        return Err(CUT);
    }
    Ok((*tag, &rest[..len], &rest[len..]))
}

/// `YYMMDDHHMMSSZ`, where 50 and more are of the last century, or `YYYYMMDDHHMMSSZ`.
fn seconds(tag: u8, text: &str) -> Option<u64> {
    let digits = text.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let year: u64 = digits.get(..2)?.parse().ok()?;
            (
                if year < 50 { 2000 + year } else { 1900 + year },
                digits.get(2..)?,
            )
        }
        GENERALIZED_TIME => (digits.get(..4)?.parse().ok()?, digits.get(4..)?),
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<u64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    let (hours, minutes, seconds) = (part(4)?, part(6)?, part(8)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || rest.len() != 10 {
        return None;
    }
    Some(days(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

/// Since 1970-01-01. Years begin in March here, so that the day that is there only now and then is the last.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let before_1970 = 719_468;
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - before_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_rfc_5280_writes_them() {
        for (tag, text, expected) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "240229235959Z", Some(1_709_251_199)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (UTC_TIME, "241301000000Z", None),
            (UTC_TIME, "2401010000Z", None),
            (UTC_TIME, "240101000000", None),
        ] {
            assert_eq!(seconds(tag, text), expected, "{text}");
        }
    }

    #[test]
    fn real_certificates_say_when_they_expire() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates");
        // As `openssl x509 -enddate` says, once as GeneralizedTime and once as UTCTime.
        for (file, expected) in [
            ("until-2126.pem", 4_949_242_751),
            ("expired.pem", 1_795_729_202),
        ] {
            let found = not_after(&folder.join(file)).expect("a certificate");
            assert_eq!(found, expected, "{file}");
        }
    }

    #[test]
    fn damage_is_an_error_and_nothing_else() {
        for text in [
            "",
            BEGIN,
            "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
        ] {
            assert!(of_pem(text).is_err(), "{text:?}");
        }
        assert_eq!(base64("aGk\n="), Some(b"hi".to_vec()));
        assert_eq!(base64("a*"), None);
    }
}
