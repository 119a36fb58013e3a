//! "Did you mean": the nearest of the words that would have been right.

/// The word nearest to `given`, when it is near enough to be what was meant.
pub(crate) fn nearest<'a>(given: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Beyond this no one mistyped: and the distance costs the product of the lengths.
    const CHARS_MAX: usize = 64;
    let given: Vec<char> = given.to_lowercase().chars().take(CHARS_MAX).collect();
    words
        .map(|word| {
            let chars: Vec<char> = word.to_lowercase().chars().take(CHARS_MAX).collect();
            let near_enough = (chars.len().max(given.len()) / 3).max(1);
            (distance(&given, &chars), near_enough, word)
        })
        .filter(|(distance, near_enough, _)| distance <= near_enough)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., word)| word)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = last;
        last = row;
    }
    last[b.len()]
}

/// "`a`, `b` or `c`".
pub(crate) fn list_of(words: &[&str], last_joint: &str) -> String {
    match words {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|word| format!("`{word}`")).collect();
            format!("{} {last_joint} `{last}`", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_word_and_another_word_does_not() {
        let words = ["retention", "memory", "listen", "data"];
        let check = |given, expected| assert_eq!(nearest(given, words.into_iter()), expected);
        check("retenton", Some("retention"));
        check("Retention", Some("retention"));
        check("listne", Some("listen"));
        check("mem", None);
        check("dat", Some("data"));
        check("database", None);
        check("", None);
    }

    #[test]
    fn distance_counts_a_swap_of_neighbours_once() {
        let check = |a: &str, b: &str, expected| {
            let (a, b): (Vec<_>, Vec<_>) = (a.chars().collect(), b.chars().collect());
            assert_eq!(distance(&a, &b), expected, "{a:?} {b:?}");
        };
        check("", "abc", 3);
        check("abc", "abc", 0);
        check("abc", "acb", 1);
        check("kitten", "sitting", 3);
    }
}
