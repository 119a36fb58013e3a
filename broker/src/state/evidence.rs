//! The column of evidence. What platforms write there is mostly made after one pattern, as the number of a tube
//! is: then only the numbers are kept, read, merged and written, and a text is made of one when somebody asks for it.

use crate::state::{
    columns::{Page, put_numbers},
    texts::{Texts, put_text, put_texts},
};
use std::ops::Range;

/// The form of what is numbered, beside those of texts.
const NUMBERED: u8 = 2;
/// Of head and tail together: so few that patterns are compared at once.
const PATTERN_BYTES: usize = 40;
/// So many fit into a number.
const DIGITS_MAX: usize = 18;

/// Texts that begin and end alike and differ in one number, which always has so many digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pattern {
    /// The head, then the tail, then zeros.
    bytes: [u8; PATTERN_BYTES],
    head: u8,
    tail: u8,
    digits: u8,
}

impl Pattern {
    fn new(head: &[u8], tail: &[u8], digits: usize) -> Option<Pattern> {
        let mut bytes = [0; PATTERN_BYTES];
        let end = head.len() + tail.len();
        if digits == 0 || digits > DIGITS_MAX {
            return None;
        }
        let (h, t) = bytes.get_mut(..end)?.split_at_mut(head.len());
        h.copy_from_slice(head);
        t.copy_from_slice(tail);
        Some(Pattern {
            bytes,
            head: head.len() as u8,
            tail: tail.len() as u8,
            digits: digits as u8,
        })
    }

    /// That of this text: what is numbered is its longest row of digits, the first of them.
    fn of(text: &[u8]) -> Option<Pattern> {
        let digits = longest_digits(text);
        Pattern::new(&text[..digits.start], &text[digits.end..], digits.len())
    }

    fn head(&self) -> &[u8] {
        &self.bytes[..usize::from(self.head)]
    }

    fn tail(&self) -> &[u8] {
        &self.bytes[usize::from(self.head)..][..usize::from(self.tail)]
    }

    fn digits(&self) -> usize {
        usize::from(self.digits)
    }

    fn len(&self) -> usize {
        usize::from(self.head) + usize::from(self.tail) + self.digits()
    }

    /// The number of a text that is made after it.
    fn number(&self, text: &[u8]) -> Option<u64> {
        let digits = text.strip_prefix(self.head())?;
        let digits = digits.strip_suffix(self.tail())?;
        let all = digits.len() == self.digits() && digits.iter().all(u8::is_ascii_digit);
        let number = || (digits.iter()).fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
        all.then(number)
    }

    fn spell(&self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head());
        let start = out.len();
        out.resize(start + self.digits(), b'0');
        let mut left = number;
        for digit in out[start..].iter_mut().rev() {
            *digit += (left % 10) as u8;
            left /= 10;
        }
        out.extend_from_slice(self.tail());
    }
}

fn longest_digits(text: &[u8]) -> Range<usize> {
    let mut longest = 0..0;
    let mut start = 0;
    for (i, byte) in text.iter().enumerate() {
        if !byte.is_ascii_digit() {
            start = i + 1;
        } else if i + 1 - start > longest.len() {
            longest = start..i + 1;
        }
    }
    longest
}

/// As numbers as long as all are made after one pattern, and else as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    pattern: Option<Pattern>,
    numbers: Vec<u64>,
    texts: Texts,
    /// What they were spelled out to, if somebody asked.
    spelled: Texts,
}

impl Evidence {
    pub fn clear(&mut self) {
        self.pattern = None;
        self.numbers.clear();
        self.texts.clear();
        self.spelled.clear();
    }

    fn is_empty(&self) -> bool {
        self.pattern.is_none() && self.texts.is_empty()
    }

    /// Bytes of all texts.
    pub fn total(&self) -> usize {
        match &self.pattern {
            Some(pattern) => self.numbers.len() * pattern.len(),
            None => self.texts.total(),
        }
    }

    /// Of this one.
    pub fn len(&self, i: usize) -> usize {
        match &self.pattern {
            Some(pattern) => pattern.len(),
            None => self.texts.len(i),
        }
    }

    pub fn push(&mut self, text: &[u8]) {
        self.spelled.clear();
        if self.is_empty() {
            self.pattern = Pattern::of(text);
        }
        let number = self.pattern.and_then(|pattern| pattern.number(text));
        match number {
            Some(number) => self.numbers.push(number),
            None => {
                self.give_up();
                self.texts.push(text);
            }
        }
    }

    pub fn push_from(&mut self, other: &Evidence, i: usize) {
        self.push_all(std::iter::once((other, i)));
    }

    /// Some of other columns.
    pub fn push_all<'a>(&mut self, those: impl Iterator<Item = (&'a Evidence, usize)>) {
        self.spelled.clear();
        for (other, i) in those {
            if self.is_empty() {
                self.pattern = other.pattern;
            }
            match &other.pattern {
                Some(_) if other.pattern == self.pattern => self.numbers.push(other.numbers[i]),
                Some(pattern) => {
                    self.give_up();
                    let number = other.numbers[i];
                    self.texts.push_made(|out| pattern.spell(number, out));
                }
                None => {
                    self.give_up();
                    self.texts.push(other.texts.get(i));
                }
            }
        }
    }

    /// They are not made after one pattern.
    fn give_up(&mut self) {
        if let Some(pattern) = self.pattern.take() {
            for number in self.numbers.drain(..) {
                self.texts.push_made(|out| pattern.spell(number, out));
            }
        }
    }

    /// As texts, whatever they are kept as.
    pub fn spelled_out(&mut self) -> &Texts {
        let Some(pattern) = self.pattern else {
            return &self.texts;
        };
        if self.spelled.is_empty() {
            for number in &self.numbers {
                self.spelled.push_made(|out| pattern.spell(*number, out));
            }
        }
        &self.spelled
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let Some(pattern) = &self.pattern else {
            return put_texts(out, &self.texts);
        };
        out.push(NUMBERED);
        put_text(out, pattern.head());
        put_text(out, pattern.tail());
        out.push(pattern.digits);
        put_numbers(out, &self.numbers);
    }

    /// Reads it into this, which is empty.
    pub fn decode(&mut self, page: &mut Page<'_>, rows: usize) -> Option<()> {
        let form = page.byte()?;
        if form != NUMBERED {
            return page.texts(form, rows, &mut self.texts);
        }
        let (head, tail) = (page.text()?, page.text()?);
        let digits = usize::from(page.byte()?);
        self.pattern = Some(Pattern::new(head, tail, digits)?);
        page.numbers(rows, &mut self.numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn evidence() -> impl Strategy<Value = Vec<String>> {
        let one = prop_oneof![
            "tube-2022-09-02-[0-9]{8}-07",
            "S[0-9]{18}",
            "[0-9]{17,20}",
            "tube-[0-9]{1,3}-07",
            "[a-z]{0,50}[0-9]?",
            Just(String::new()),
        ];
        let alike = "tube-2022-09-02-[0-9]{8}-07";
        prop_oneof![
            proptest::collection::vec(one, 1..60),
            proptest::collection::vec(alike, 1..60),
        ]
    }

    fn spelled(evidence: &mut Evidence) -> Vec<Vec<u8>> {
        evidence.spelled_out().iter().map(<[u8]>::to_vec).collect()
    }

    proptest! {
        /// However it is kept, also when rows of others come to it.
        #[test]
        fn what_was_pushed_is_spelled_out(some in evidence(), more in evidence()) {
            let all: Vec<_> = [&some[..], &more[..]].concat();
            let mut columns = [Evidence::default(), Evidence::default()];
            for (column, texts) in columns.iter_mut().zip([&some, &more]) {
                for text in texts {
                    column.push(text.as_bytes());
                }
                let lengths: Vec<_> = (0..texts.len()).map(|i| column.len(i)).collect();
                let wanted: Vec<_> = texts.iter().map(String::len).collect();
                prop_assert_eq!(column.total(), wanted.iter().sum::<usize>());
                prop_assert_eq!(lengths, wanted);
            }
            let [first, second] = &columns;
            let mut both = Evidence::default();
            both.push_all((0..some.len()).map(|i| (first, i)));
            both.push_all((0..more.len()).map(|i| (second, i)));
            let wanted: Vec<_> = all.iter().map(|text| text.as_bytes().to_vec()).collect();
            prop_assert_eq!(spelled(&mut both), wanted);
        }
    }

    #[test]
    fn what_is_made_after_one_pattern_takes_four_bytes() {
        let mut column = Evidence::default();
        for n in 0..256u64 {
            let number = n * 387_123 % 100_000_000;
            column.push(format!("tube-2022-09-02-{number:08}-07").as_bytes());
        }
        let mut page = Vec::new();
        column.encode(&mut page);
        assert!(page.len() < 256 * 4 + 50, "{}", page.len());
        assert_eq!(spelled(&mut column)[2], b"tube-2022-09-02-00774246-07");
    }
}
