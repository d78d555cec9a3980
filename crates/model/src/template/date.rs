//! Dates as `strftime` writes them, in UTC.

use minijinja::{Error, ErrorKind};
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

/// Formats a time with the directives that templates use.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[(seconds / 86_400 + 4) as usize % 7]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", of_day / 3600),
            Some('M') => out += &format!("{:02}", of_day / 60 % 60),
            Some('S') => out += &format!("{:02}", of_day % 60),
            Some('%') => out.push('%'),
            other => {
                let directive: String = other.into_iter().collect();
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("strftime_now knows no %{directive}"),
                ));
            }
        }
    }
    Ok(out)
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
        let at = |seconds| strftime("%A %d %b %Y %H:%M:%S %y %m %B %a %%", seconds).unwrap();
        assert_eq!(at(0), "Thursday 01 Jan 1970 00:00:00 70 01 January Thu %");
        assert_eq!(at(951_782_400), "Tuesday 29 Feb 2000 00:00:00 00 02 February Tue %");
        assert_eq!(at(1_735_689_599), "Tuesday 31 Dec 2024 23:59:59 24 12 December Tue %");
        assert!(strftime("%Q", 0).is_err());
    }
}
