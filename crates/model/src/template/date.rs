//! Dates as Python's `strftime` writes them for `datetime.now()`, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Formats a time. Every directive of C and of the GNU library is known, `%-d` (no padding) among them; `%z` and `%Z` are
/// empty, as they are in Python for a time without zone; what is no directive stays as it is.
pub(super) fn strftime(format: &str, seconds: u64) -> String {
    let time = Time::at(seconds);
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let directive = &rest[at + 1..];
        let flags = directive.len() - directive.trim_start_matches(['-', '_', '0', '^', '#']).len();
        let (flags, after) = directive.split_at(flags);
        let Some(letter) = after.chars().next() else {
            out.push_str(&rest[at..]);
            return out;
        };
        rest = &after[letter.len_utf8()..];
        match time.field(letter) {
            Some(text) => out.push_str(&flagged(&text, flags)),
            None => {
                out.push('%');
                out.push_str(flags);
                out.push(letter);
            }
        }
    }
    out.push_str(rest);
    out
}

/// A field with the flags of the GNU library: `-` takes padding away, `_` pads with spaces, `0` with zeros, `^` is for capitals.
fn flagged(text: &str, flags: &str) -> String {
    let digits = text.trim_start_matches(['0', ' ']);
    let is_number = text.trim_start().chars().all(|c| c.is_ascii_digit()) && !text.is_empty();
    let digits = if digits.is_empty() && is_number { "0" } else { digits };
    let text = match flags.chars().rev().find(|f| "-_0".contains(*f)) {
        Some('-') if is_number => digits.to_string(),
        Some('_') if is_number => format!("{digits:>width$}", width = text.len()),
        Some('0') if is_number => format!("{digits:0>width$}", width = text.len()),
        _ => text.to_string(),
    };
    if flags.contains('^') { text.to_uppercase() } else { text }
}

/// A time of the calendar.
struct Time {
    seconds: u64,
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// Sunday is 0.
    weekday: u64,
    /// From 0.
    day_of_year: u64,
}

impl Time {
    fn at(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let (year, month, day) = civil(days);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month - 1];
        let day_of_year = before + day - 1 + u64::from(leap && month > 2);
        Self { seconds, year, month: month - 1, day, weekday: (days + 4) % 7, day_of_year }
    }

    /// The text of a directive; `None` for letters that are none.
    fn field(&self, letter: char) -> Option<String> {
        let of_day = self.seconds % 86_400;
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        let hour_of_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
        let (month_name, day_name) = (MONTHS[self.month], DAYS[self.weekday as usize]);
        let month = self.month as u64 + 1;
        let two = |n: u64| format!("{n:02}");
        let all = |format: &str| strftime(format, self.seconds);
        Some(match letter {
            'Y' => self.year.to_string(),
            'C' => two(self.year / 100),
            'y' => two(self.year % 100),
            'm' => two(month),
            'd' => two(self.day),
            'e' => format!("{:2}", self.day),
            'B' => month_name.to_string(),
            'b' | 'h' => month_name[..3].to_string(),
            'A' => day_name.to_string(),
            'a' => day_name[..3].to_string(),
            'H' => two(hour),
            'I' => two(hour_of_12),
            'k' => format!("{hour:2}"),
            'l' => format!("{hour_of_12:2}"),
            'M' => two(minute),
            'S' => two(second),
            'f' => "000000".to_string(),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_string(),
            'P' => if hour < 12 { "am" } else { "pm" }.to_string(),
            'j' => format!("{:03}", self.day_of_year + 1),
            'u' => if self.weekday == 0 { 7 } else { self.weekday }.to_string(),
            'w' => self.weekday.to_string(),
            'U' => two((self.day_of_year + 7 - self.weekday) / 7),
            'W' => two((self.day_of_year + 7 - (self.weekday + 6) % 7) / 7),
            'V' => two(self.iso_week().1),
            'G' => self.iso_week().0.to_string(),
            'g' => two(self.iso_week().0 % 100),
            's' => self.seconds.to_string(),
            'D' | 'x' => all("%m/%d/%y"),
            'F' => all("%Y-%m-%d"),
            'T' | 'X' => all("%H:%M:%S"),
            'R' => all("%H:%M"),
            'r' => all("%I:%M:%S %p"),
            'c' => all("%a %b %e %H:%M:%S %Y"),
            'z' | 'Z' => String::new(),
            'n' => "\n".to_string(),
            't' => "\t".to_string(),
            '%' => "%".to_string(),
            _ => return None,
        })
    }

    /// Year and week by ISO 8601: weeks begin on Monday, and belong to the year of their Thursday.
    fn iso_week(&self) -> (u64, u64) {
        let days = self.seconds / 86_400;
        let thursday = days + 3 - (self.weekday + 6) % 7;
        let of = Self::at(thursday * 86_400);
        (of.year, of.day_of_year / 7 + 1)
    }
}

/// Year, month and day of a day counted from 1970-01-01: years from March, so that the leap day comes last.
fn civil(days: u64) -> (u64, usize, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| strftime("%A %d %b %Y %H:%M:%S %y %m %B %a %%", seconds);
        assert_eq!(at(0), "Thursday 01 Jan 1970 00:00:00 70 01 January Thu %");
        assert_eq!(at(951_782_400), "Tuesday 29 Feb 2000 00:00:00 00 02 February Tue %");
        assert_eq!(at(1_735_689_599), "Tuesday 31 Dec 2024 23:59:59 24 12 December Tue %");
    }

    /// Values are those of Python's `datetime(2026, 12, 1, 9, 5, 7).strftime` on Linux, and of 2027-01-03 for weeks.
    #[test]
    fn every_directive_is_written_as_python_does() {
        let at = |format| strftime(format, 1_796_115_907);
        assert_eq!(at("%F %T"), "2026-12-01 09:05:07");
        assert_eq!(at("%-d %-m %-H|%e|%I:%M %p|%j|%u%w|%z|%Z|"), "1 12 9| 1|09:05 AM|335|22|||");
        assert_eq!(at("%D %R %C %h %c"), "12/01/26 09:05 20 Dec Tue Dec  1 09:05:07 2026");
        assert_eq!(at("%U %W %V %G %^b %_H %"), "48 48 49 2026 DEC  9 %");
        assert_eq!(at("%Q %-Q"), "%Q %-Q");
        assert_eq!(strftime("%V %G %U %W %a", 1_798_934_400), "53 2026 01 00 Sun");
    }
}
