//! The text of a replica's state without what decides nothing: two states with one text behave alike.
//!
//! The text is that of `Debug`, which shows every field. Left out are the settings, the random numbers, and how far ahead deadlines lie. A time
//! is reduced to its relation to the replica's clock, the numbers of writes to their distance from the last durable one.

use std::time::Duration;

use conclave_consensus::Time;

/// Reduces a `Debug` text of a core whose clock stands at `now`.
pub(super) fn reduce(text: &str, now: Time, election: Duration) -> String {
    // The core's own count, the only field of that name that holds a number.
    let durable = text.rfind("durable: ").map_or(0, |at| number(&text[at + "durable: ".len()..]).0);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut field = "";
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            let end = string_end(rest);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        if !is_word(first) {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        if let Some(value) = after.strip_prefix(": ") {
            field = word;
            if matches!(word, "issued" | "durable" | "meta_in" | "voted_in") {
                let (written, length) = number(value);
                out.push_str(word);
                out.push_str(&format!(":{}", written.saturating_sub(durable)));
                rest = &value[length..];
                continue;
            }
        }
        match word {
            "Time" if after.starts_with('(') => {
                let (time, length) = number(&after[1..]);
                out.push_str(relation(field, Time(time), now, election));
                rest = &after[length + 2..];
            }
            "Random" if after.starts_with('(') => rest = &after[after.find(')').map_or(0, |at| at + 1)..],
            "Mark" | "RaftConfig" if after.starts_with(" {") => rest = &after[braces_end(after)..],
            _ => out.push_str(word),
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The number at the beginning, and how many bytes it takes.
fn number(text: &str) -> (u64, usize) {
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    (text[..length].parse().unwrap_or(0), length)
}

/// Where a string literal that begins `text` ends.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Where the first pair of braces in `text` ends.
fn braces_end(text: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

fn relation(field: &str, time: Time, now: Time, election: Duration) -> &'static str {
    match field {
        "now" | "election_due" | "beat_due" => "",
        _ if time > now => "ahead",
        "quiet_until" => "over",
        _ if now.since(time) >= election => "long ago",
        _ => "lately",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(text: &str) -> String {
        reduce(text, Time(1000), Duration::from_nanos(100))
    }

    #[test]
    fn times_keep_only_what_decides() {
        assert_eq!(reduced("quiet_until: Time(1001), x"), "quiet_until: ahead, x");
        assert_eq!(reduced("quiet_until: Time(1000)"), reduced("quiet_until: Time(3)"));
        assert_eq!(reduced("heard: Time(901)"), reduced("heard: Time(1000)"));
        assert_ne!(reduced("heard: Time(901)"), reduced("heard: Time(900)"));
        assert_eq!(reduced("election_due: Time(5)"), reduced("election_due: Time(9999)"));
    }

    #[test]
    fn numbers_of_writes_are_relative_and_marks_gone() {
        let text = |written: u64| {
            format!(
                "voted_in: {}, Mark {{ ballot: Ballot {{ round: 1 }}, sequence: {written} }}, upto: 3, durable: {}",
                written + 2,
                written
            )
        };
        assert_eq!(reduced(&text(7)), reduced(&text(9)));
        assert!(reduced(&text(7)).contains("voted_in:2, , upto: 3"), "{}", reduced(&text(7)));
    }

    #[test]
    fn strings_stay_as_they_are() {
        assert_eq!(reduced(r#"meta: b"Time(7)\" Mark {", y: 1"#), r#"meta: b"Time(7)\" Mark {", y: 1"#);
    }
}
