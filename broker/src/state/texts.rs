//! A column of texts, and how it is written: the forms 0 and 1 of texts in a page (`columns.rs`).

use crate::state::columns::{Page, ROWS_MAX, common, put_numbers};

const CHOICES_MAX: usize = 16;
const FEW: u8 = 0;
const DIFFERENT: u8 = 1;

/// Of a page that was read, several may be in one and the same place: what many rows have is there once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    bytes: Vec<u8>,
    /// Where each begins and ends.
    places: Vec<(u32, u32)>,
    /// Of all, as if each were there for itself.
    total: usize,
}

impl Texts {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
        self.total = 0;
    }

    fn put(&mut self, text: &[u8]) -> (u32, u32) {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(text);
        (start, self.bytes.len() as u32)
    }

    pub fn push(&mut self, text: &[u8]) {
        let place = self.put(text);
        self.places.push(place);
        self.total += text.len();
    }

    /// One that is made at its place.
    pub fn push_made(&mut self, make: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len() as u32;
        make(&mut self.bytes);
        let end = self.bytes.len() as u32;
        self.places.push((start, end));
        self.total += (end - start) as usize;
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn at(&self, (start, end): (u32, u32)) -> &[u8] {
        &self.bytes[start as usize..end as usize]
    }

    /// Bytes of all, as if each were there for itself.
    pub fn total(&self) -> usize {
        self.total
    }

    pub fn get(&self, i: usize) -> &[u8] {
        self.at(self.places[i])
    }

    pub fn len(&self, i: usize) -> usize {
        let (start, end) = self.places[i];
        (end - start) as usize
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.places.iter().map(|place| self.at(*place))
    }
}

pub fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text);
}

pub fn put_texts(out: &mut Vec<u8>, texts: &Texts) {
    if put_few_texts(out, texts) {
        return;
    }
    out.push(DIFFERENT);
    let first = texts.get(0);
    let shortest = texts.iter().map(<[u8]>::len).min().unwrap_or(0);
    let mut head = shortest;
    let mut tail = shortest;
    for text in texts.iter().skip(1) {
        if first[..head] != text[..head] {
            head = common(&first[..head], text);
        }
        if first[first.len() - tail..] != text[text.len() - tail..] {
            let same = first.iter().rev().zip(text.iter().rev());
            tail = same.take(tail).take_while(|(a, b)| a == b).count();
        }
    }
    let tail = tail.min(shortest - head);
    put_text(out, &first[..head]);
    put_text(out, &first[first.len() - tail..]);
    let lengths = texts.iter().map(|text| (text.len() - head - tail) as u64);
    let mut numbers = [0; ROWS_MAX];
    for (place, n) in numbers.iter_mut().zip(lengths) {
        *place = n;
    }
    put_numbers(out, &numbers[..texts.places.len()]);
    for text in texts.iter() {
        out.extend_from_slice(&text[head..text.len() - tail]);
    }
}

/// If there are few different ones.
fn put_few_texts(out: &mut Vec<u8>, texts: &Texts) -> bool {
    let mut choices: [&[u8]; CHOICES_MAX] = [&[]; CHOICES_MAX];
    let mut which = [0u8; ROWS_MAX];
    let mut known = 0;
    for (text, place) in texts.iter().zip(&mut which) {
        let found = choices[..known].iter().position(|choice| *choice == text);
        if found.is_none() {
            let Some(free) = choices.get_mut(known) else {
                return false;
            };
            *free = text;
            known += 1;
        }
        *place = found.unwrap_or(known - 1) as u8;
    }
    out.push(FEW);
    out.push(known as u8);
    choices[..known]
        .iter()
        .for_each(|choice| put_text(out, choice));
    if known > 1 {
        out.extend_from_slice(&which[..texts.places.len()]);
    }
    true
}

impl<'a> Page<'a> {
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let bytes = self.short()?;
        self.take(usize::from(bytes))
    }

    /// What follows the form of the texts.
    pub fn texts(&mut self, form: u8, rows: usize, out: &mut Texts) -> Option<()> {
        match form {
            FEW => self.few_texts(rows, out)?,
            DIFFERENT => {
                let (head, tail) = (self.text()?, self.text()?);
                let mut lengths = Vec::with_capacity(rows);
                self.numbers(rows, &mut lengths)?;
                for length in lengths {
                    let between = self.take(usize::try_from(length).ok()?)?;
                    let start = out.bytes.len() as u32;
                    out.bytes.extend_from_slice(head);
                    out.bytes.extend_from_slice(between);
                    out.bytes.extend_from_slice(tail);
                    out.places.push((start, out.bytes.len() as u32));
                }
            }
            _ => return None,
        }
        out.total = out.iter().map(<[u8]>::len).sum();
        Some(())
    }

    fn few_texts(&mut self, rows: usize, out: &mut Texts) -> Option<()> {
        let known = usize::from(self.byte()?);
        let mut choices = [(0, 0); CHOICES_MAX];
        for choice in choices.get_mut(..known)? {
            *choice = out.put(self.text()?);
        }
        let choices = &choices[..known];
        if let [only] = choices {
            out.places.resize(rows, *only);
            return Some(());
        }
        for which in self.take(rows)? {
            out.places.push(*choices.get(usize::from(*which))?);
        }
        Some(())
    }
}
