//! Sizes and durations as people write them: `64KiB`, `16MiB`, `2s`, `500ms`, `0`.
//!
//! One spelling for flags and (later) configuration files. Reads and writes values; knows nothing of what they mean.

use std::fmt;
use std::time::Duration;

/// A number of bytes. Written `1024`, `64KiB`, `16MiB`, `1GiB`; `KB`, `MB`, `GB` are powers of ten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// A value that could not be read, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError(String);

impl fmt::Display for UnitError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UnitError {}

/// Units of size, largest first so that [`Size`] is shown in the largest that divides it.
const SIZE_UNITS: [(&str, usize); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

impl std::str::FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Size, UnitError> {
        let (number, unit) = split_unit(text);
        let scale = if unit.is_empty() {
            Some(1)
        } else {
            SIZE_UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|&(_, scale)| scale)
        };
        number
            .parse::<usize>()
            .ok()
            .zip(scale)
            .and_then(|(number, scale)| number.checked_mul(scale))
            .map(Size)
            .ok_or_else(|| UnitError("write a size in bytes, such as 65536, 64KiB or 16MiB".to_owned()))
    }
}

impl Size {
    /// The whole number of the largest unit that fits: near enough to tell people, not to be read back.
    pub fn about(self) -> Size {
        let scale = SIZE_UNITS
            .iter()
            .find(|(name, scale)| name.contains('i') && self.0 >= *scale);
        scale.map_or(self, |(_, scale)| Size(self.0 / scale * scale))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SIZE_UNITS.iter().filter(|(name, _)| name.contains('i'));
        for &(name, scale) in binary {
            if self.0 >= scale && self.0.is_multiple_of(scale) {
                return write!(formatter, "{}{name}", self.0 / scale);
            }
        }
        write!(formatter, "{}B", self.0)
    }
}

/// Reads a duration: a number with `us`, `ms`, `s`, `m` or `h`, or a bare `0`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split_unit(text);
    let us_per_unit: Option<u64> = match unit {
        "us" => Some(1),
        "ms" => Some(1_000),
        "s" => Some(1_000_000),
        "m" => Some(60_000_000),
        "h" => Some(3_600_000_000),
        // Zero is the same in every unit; any other number without one would be a guess.
        "" if number == "0" => Some(1),
        _ => None,
    };
    number
        .parse::<u64>()
        .ok()
        .zip(us_per_unit)
        .and_then(|(number, scale)| number.checked_mul(scale))
        .map(Duration::from_micros)
        .ok_or_else(|| {
            UnitError("write a duration with its unit, such as 500ms, 2s or 5m; 0 for none".to_owned())
        })
}

/// Where the digits end and the unit begins; a space between them is allowed.
fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_size(text: &str, expect: Option<usize>) {
        assert_eq!(text.parse::<Size>().ok().map(|size| size.0), expect, "{text}");
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        check_size("0", Some(0));
        check_size("65536", Some(65_536));
        check_size("64KiB", Some(65_536));
        check_size("64 kib", Some(65_536));
        check_size("16MiB", Some(16 << 20));
        check_size("2MB", Some(2_000_000));
        check_size("10B", Some(10));
    }

    #[test]
    fn wrong_sizes_are_refused() {
        check_size("", None);
        check_size("KiB", None);
        check_size("-1", None);
        check_size("1.5MiB", None);
        check_size("64K1B", None);
        check_size("99999999999GiB", None);
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_divides_them() {
        assert_eq!(Size(1 << 20).to_string(), "1MiB");
        assert_eq!(Size(1025).to_string(), "1025B");
        assert_eq!(Size(0).to_string(), "0B");
        assert_eq!(Size((1 << 20) + 14).about().to_string(), "1MiB");
    }

    #[test]
    fn durations_need_their_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert!(parse_duration("5").is_err());
        assert!(parse_duration("").is_err());
        assert!(parse_duration("99999999999999999h").is_err());
    }
}
