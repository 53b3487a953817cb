//! Figures as people read them.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::{RoundMode, Span, SpanRound, Unit};
use ratatui::crossterm::terminal;
use vgpu_mediator::control::Guest;
use vgpu_mediator::print::is_terminal;
pub(crate) use vgpu_mediator::print::{bytes, count};
use vgpu_mediator::usage::Standing;

/// A duration in its two largest units, as in `3h 20m`.
pub(crate) fn duration(seconds: u64) -> String {
    let smallest = match seconds {
        ..3600 => Unit::Second,
        3600..86400 => Unit::Minute,
        _ => Unit::Hour,
    };
    let two_units = SpanRound::new()
        .largest(Unit::Day)
        .smallest(smallest)
        .mode(RoundMode::Trunc)
        .days_are_24_hours();
    let span = Span::new().try_seconds(i64::try_from(seconds).unwrap_or(i64::MAX));
    match span.and_then(|span| span.round(two_units)) {
        Ok(span) => format!("{span:#}"),
        // Thousands of years.
        Err(_) => format!("{seconds}s"),
    }
}

/// Device memory in use and what there is of it.
pub(crate) fn memory(standing: &Standing) -> String {
    match standing.memory_limit {
        0 => "-".to_owned(),
        limit => format!(
            "{} of {}",
            bytes(standing.memory as f64),
            bytes(limit as f64)
        ),
    }
}

/// Sessions and kernels of a guest that were ended by force.
pub(crate) fn kills(guest: &Guest) -> u64 {
    guest
        .sessions_killed
        .saturating_add(guest.usage.kernels_killed)
}

/// A part of a whole, as in `12 %`.
pub(crate) fn percent(part: f64, whole: f64) -> String {
    match whole > 0.0 {
        true => format!("{:.0} %", 100.0 * part / whole),
        false => "-".to_owned(),
    }
}

/// Lines of cells as aligned columns; the first line is the heading. Columns of figures are
/// aligned to the right. Columns that the terminal has no room for come below, in tables of their own.
pub(crate) fn table(lines: &[Vec<String>], figures_from: usize) -> String {
    let room = is_terminal().then(terminal::size).and_then(Result::ok);
    let room = room.map(|(columns, _)| usize::from(columns));
    table_in(lines, figures_from, room.filter(|columns| *columns > 0))
}

/// [`table`], in lines of at most `room` characters where one column fits beside the first, which says whose line it is
/// and stands in each part.
fn table_in(lines: &[Vec<String>], figures_from: usize, room: Option<usize>) -> String {
    const BETWEEN: usize = 2;
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut taken = 0;
    for column in 1..columns {
        let needs = BETWEEN + width(column);
        match parts.last_mut() {
            Some(part) if room.is_none_or(|room| taken + needs <= room) => {
                part.push(column);
                taken += needs;
            }
            _ => {
                parts.push(vec![0, column]);
                taken = width(0) + needs;
            }
        }
    }
    if parts.is_empty() {
        parts.push(vec![0]);
    }
    let tables = parts.iter().map(|part| {
        let cell =
            |line: &Vec<String>, column: usize| line.get(column).cloned().unwrap_or_default();
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .add_rows(
                lines
                    .iter()
                    .map(|line| part.iter().map(|it| cell(line, *it)).collect::<Vec<_>>()),
            );
        for (column, own) in table.column_iter_mut().zip(part) {
            column.set_padding((0, 2));
            if *own >= figures_from {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt() + "\n"
    });
    tables.collect::<Vec<_>>().join("\n")
}

/// A text from a guest, short enough for a column.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    match most.checked_sub(1) {
        Some(most) => text.chars().take(most).chain(['…']).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_beyond_the_terminal_come_below_with_the_first_beside_them() {
        let lines = [
            ["NAME", "N", "STATE", "BYTES"],
            ["web-1", "1", "serving", "1.5 MB"],
        ];
        let lines = lines.map(|line| line.map(str::to_owned).to_vec());
        let whole = "NAME   N  STATE     BYTES\nweb-1  1  serving  1.5 MB\n";
        assert_eq!(table_in(&lines, 3, None), whole);
        assert_eq!(table_in(&lines, 3, Some(25)), whole);
        let parts = "NAME   N  STATE\nweb-1  1  serving\n\nNAME    BYTES\nweb-1  1.5 MB\n";
        assert_eq!(table_in(&lines, 3, Some(24)), parts);
        // Each column that has no room at all has a table all the same.
        assert_eq!(table_in(&lines, 3, Some(1)).matches("NAME").count(), 3);
    }

    #[test]
    fn figures_are_short_and_right() {
        assert_eq!(count(0.0), "0");
        assert_eq!(count(999.0), "999");
        assert_eq!(count(999.9), "1.0 k");
        assert_eq!(count(999.4), "999");
        assert_eq!(count(999.5), "1.0 k");
        assert_eq!(count(1_500_000.0), "1.5 M");
        assert_eq!(count(999_940.0), "999.9 k");
        assert_eq!(count(u64::MAX as f64), "18.4 E");
        assert_eq!(count(999_990.0), "1.0 M");
        assert_eq!(bytes(12.0), "12 B");
        assert_eq!(bytes(12_582_912.0), "12.6 MB");
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3599, "59m 59s"),
            (3600, "1h"),
            (12_059, "3h 20m"),
            (90_000, "1d 1h"),
            (400 * 86400, "400d"),
            (u64::MAX, "18446744073709551615s"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(
            (shorten("ab", 1), shorten("ab", 0)),
            ("…".into(), String::new())
        );
    }

    #[test]
    fn columns_align() {
        let line = |cells: &[&str]| cells.iter().map(ToString::to_string).collect::<Vec<_>>();
        let lines = [
            line(&["NAME", "N"]),
            line(&["a", "100"]),
            line(&["long", "5"]),
        ];
        assert_eq!(table(&lines, 1), "NAME    N\na     100\nlong    5\n");
    }
}
