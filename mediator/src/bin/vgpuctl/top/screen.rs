//! The screen of `top`: figures in, a picture out. No I/O.

use std::cmp::Ordering;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, LineGauge, Paragraph, Row, Table};
use vgpu_mediator::control::{Gpu, Status};

use super::{GuestRates, Look, Rates};
use crate::figures::{bytes, count, duration, memory, shorten};
use crate::gpus;

/// The key that sorts, what it sorts by, and the heading of the column.
const ORDERS: [(char, &str, Order); 8] = [
    ('s', "SHARE", Order::Share),
    ('d', "DEVICE", Order::Device),
    ('m', "MEMORY", Order::Memory),
    ('r', "REQ/s", Order::Requests),
    ('t', "IN+OUT/s", Order::Traffic),
    ('u', "QUEUE", Order::Queue),
    ('k', "KILLS", Order::Kills),
    ('g', "GUEST", Order::Guest),
];

/// Narrowest column of names; a longer name is cut.
const NAME: usize = 12;

/// Widest column of names.
const WIDEST_NAME: usize = 40;

/// Space between two columns.
const GAP: u16 = 2;

/// The order of guests and sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Share,
    Device,
    Memory,
    Requests,
    Traffic,
    Queue,
    Kills,
    Guest,
}

/// The reaction to a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Nothing to show anew.
    Nothing,
    Redraw,
    Quit,
}

/// The user's choice of order and place in the list.
#[derive(Debug)]
pub(super) struct Screen {
    order: Order,
    /// Guests above the first that is shown.
    skip: usize,
}

/// A column: its heading, its cells, and how soon it gives way where the terminal is narrow.
struct Column {
    heading: &'static str,
    cells: Vec<String>,
    /// The lowest goes first.
    rank: u8,
    right: bool,
    sorts: Option<Order>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self {
            order: Order::Share,
            skip: 0,
        }
    }

    /// Takes a character that was typed.
    pub(super) fn typed(&mut self, key: char) -> Reaction {
        if key.eq_ignore_ascii_case(&'q') {
            return Reaction::Quit;
        }
        let order = ORDERS
            .iter()
            .find(|(of, ..)| *of == key.to_ascii_lowercase());
        match order {
            Some((.., order)) => {
                (self.order, self.skip) = (*order, 0);
                Reaction::Redraw
            }
            None => Reaction::Nothing,
        }
    }

    /// Moves the list of guests by some lines.
    pub(super) fn scroll(&mut self, lines: isize) -> Reaction {
        self.skip = self.skip.saturating_add_signed(lines);
        Reaction::Redraw
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, look: &Look) {
        let area = frame.area();
        // Two borders and the heading. A terminal without room for all of them shows the first, or none.
        let gpus = match u16::try_from(look.status.gpus.len()).unwrap_or(u16::MAX) {
            0 => 0,
            _ if area.height < 16 => 0,
            some => some.saturating_add(3).min(area.height / 4),
        };
        let guests = u16::try_from(look.guests.len()).unwrap_or(u16::MAX);
        // Two borders and the heading. Sessions get what guests leave, and at least a third.
        let most = area.height.saturating_sub(6 + gpus) * 2 / 3;
        let guests = guests.saturating_add(3).min(most.max(5));
        let [head, device, gpus, guests, sessions, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(3),
            Constraint::Length(gpus),
            Constraint::Length(guests),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(heading(&look.status), head);
        draw_device(frame, device, look);
        self.draw_gpus(frame, gpus, &look.status.gpus);
        self.draw_guests(frame, guests, &look.guests);
        self.draw_sessions(frame, sessions, &look.sessions);
        frame.render_widget(self.keys(), keys);
    }

    fn draw_gpus(&self, frame: &mut Frame<'_>, area: Rect, gpus: &[Gpu]) {
        // Two borders, the heading and a line.
        if area.height < 4 {
            return;
        }
        let shown = gpus.iter().take(usize::from(area.height - 3));
        let cells: Vec<[String; 6]> = shown.map(gpus::cells).collect();
        let ranks = [99, 98, 97, 90, 80, 70];
        let columns = gpus::HEADINGS.iter().zip(ranks).enumerate();
        let columns = columns.map(|(place, (heading, rank))| Column {
            heading,
            cells: cells.iter().map(|cells| cells[place].clone()).collect(),
            rank,
            right: place > 0,
            sorts: None,
        });
        let title = match gpus.len() {
            1 => " 1 GPU ".to_owned(),
            count => format!(" {count} GPUs "),
        };
        self.draw_table(frame, area, title, columns.collect());
    }

    fn draw_guests(&mut self, frame: &mut Frame<'_>, area: Rect, guests: &[GuestRates]) {
        let mut guests: Vec<&GuestRates> = guests.iter().collect();
        guests.sort_by(|a, b| self.compare(a, b).then_with(|| a.guest.cmp(&b.guest)));
        let lines = usize::from(area.height.saturating_sub(3));
        self.skip = self.skip.min(guests.len().saturating_sub(lines));
        let title = match guests.len().saturating_sub(lines) {
            0 => format!(" {} guests ", guests.len()),
            _ => format!(
                " guests {} to {} of {} ",
                self.skip + 1,
                self.skip + lines,
                guests.len()
            ),
        };
        let shown: Vec<&GuestRates> = guests.into_iter().skip(self.skip).take(lines).collect();
        let column = |heading, rank, sorts, cell: &dyn Fn(&GuestRates) -> String| Column {
            heading,
            cells: shown.iter().map(|guest| cell(guest)).collect(),
            rank,
            right: true,
            sorts,
        };
        let percent = |part: Option<f64>| match part {
            Some(part) => format!("{part:.0} %"),
            None => "-".to_owned(),
        };
        let columns = vec![
            Column {
                right: false,
                ..column("GUEST", 99, Some(Order::Guest), &|it| it.guest.clone())
            },
            column("SHARE", 98, Some(Order::Share), &|it| {
                percent(it.device_share_percent)
            }),
            column("DEVICE", 90, Some(Order::Device), &|it| {
                percent(Some(it.device_percent))
            }),
            column("MEMORY", 95, Some(Order::Memory), &|it| {
                memory(&it.standing())
            }),
            column("QUEUE", 70, Some(Order::Queue), &|it| it.queue.to_string()),
            column("REQ/s", 85, Some(Order::Requests), &|it| {
                count(it.requests_per_s)
            }),
            column("FAILED/s", 40, None, &|it| count(it.failed_per_s)),
            column("IN/s", 60, Some(Order::Traffic), &|it| {
                bytes(it.bytes_in_per_s)
            }),
            column("OUT/s", 59, Some(Order::Traffic), &|it| {
                bytes(it.bytes_out_per_s)
            }),
            column("KILLS", 65, Some(Order::Kills), &|it| it.kills.to_string()),
            column("SESSIONS", 50, None, &|it| it.sessions.to_string()),
            column("WEIGHT", 30, None, &|it| {
                it.weight
                    .map_or_else(|| "-".to_owned(), |weight| weight.to_string())
            }),
        ];
        self.draw_table(frame, area, title, columns);
    }

    fn draw_sessions(&self, frame: &mut Frame<'_>, area: Rect, sessions: &[Rates]) {
        // Two borders, the heading and a line.
        if area.height < 4 {
            return;
        }
        let mut sessions: Vec<&Rates> = sessions.iter().collect();
        sessions.sort_by(|a, b| {
            let descending = |of: fn(&Rates) -> f64| of(b).total_cmp(&of(a));
            let order = match self.order {
                Order::Guest => a.guest.cmp(&b.guest),
                Order::Requests => descending(|it| it.requests_per_s),
                Order::Traffic => descending(|it| it.bytes_in_per_s + it.bytes_out_per_s),
                _ => descending(|it| it.device_percent),
            };
            order.then(a.session.cmp(&b.session))
        });
        let title = format!(" {} sessions ", sessions.len());
        sessions.truncate(usize::from(area.height - 3));
        let column = |heading, rank, right, cell: &dyn Fn(&Rates) -> String| Column {
            heading,
            cells: sessions.iter().map(|it| cell(it)).collect(),
            rank,
            right,
            sorts: None,
        };
        let columns = vec![
            column("GUEST", 99, false, &|it| it.guest.clone()),
            column("SESSION", 80, true, &|it| it.session.to_string()),
            column("STATE", 70, false, &|it| it.state.clone()),
            column("PROGRAM", 50, false, &|it| {
                shorten(it.client.as_deref().unwrap_or("-"), 24)
            }),
            column("AGE", 60, true, &|it| duration(it.age_s)),
            column("DEVICE", 95, true, &|it| {
                format!("{:.0} %", it.device_percent)
            }),
            column("REQ/s", 90, true, &|it| count(it.requests_per_s)),
            column("IN/s", 85, true, &|it| bytes(it.bytes_in_per_s)),
            column("OUT/s", 84, true, &|it| bytes(it.bytes_out_per_s)),
        ];
        self.draw_table(frame, area, title, columns);
    }

    fn draw_table(
        &self,
        frame: &mut Frame<'_>,
        area: Rect,
        title: String,
        mut columns: Vec<Column>,
    ) {
        let room = usize::from(area.width.saturating_sub(2));
        let widths = fit(&mut columns, room);
        let heading = Row::new(columns.iter().map(|column| {
            let line = Line::from(column.heading).alignment(column.alignment());
            match column.sorts == Some(self.order) {
                true => line.style(Style::new().add_modifier(Modifier::REVERSED)),
                false => line,
            }
        }));
        let lines = columns.first().map_or(0, |column| column.cells.len());
        let rows = (0..lines).map(|line| {
            Row::new(columns.iter().zip(&widths).map(move |(column, width)| {
                Line::from(shorten(&column.cells[line], *width)).alignment(column.alignment())
            }))
        });
        let widths = widths
            .iter()
            .map(|width| Constraint::Length(u16::try_from(*width).unwrap_or(u16::MAX)));
        let table = Table::new(rows, widths)
            .header(heading.style(Style::new().add_modifier(Modifier::BOLD)))
            .column_spacing(GAP)
            .block(Block::bordered().title(title));
        frame.render_widget(table, area);
    }

    fn keys(&self) -> Paragraph<'static> {
        let mut spans = vec![Span::raw(" sort: ")];
        for (key, what, order) in ORDERS {
            let style = match order == self.order {
                true => Style::new().add_modifier(Modifier::BOLD),
                false => Style::new(),
            };
            spans.push(Span::styled(key.to_string(), style.fg(Color::Cyan)));
            spans.push(Span::styled(format!(" {what}  "), style));
        }
        // What is last may be cut on a narrow terminal, so the way out comes first.
        spans.insert(0, Span::raw(" quit "));
        spans.insert(0, Span::styled(" q", Style::new().fg(Color::Cyan)));
        Paragraph::new(Line::from(spans))
    }

    fn compare(&self, a: &GuestRates, b: &GuestRates) -> Ordering {
        let descending = |of: fn(&GuestRates) -> f64| of(b).total_cmp(&of(a));
        match self.order {
            Order::Share | Order::Device => descending(|it| it.device_percent),
            Order::Memory => b.memory.cmp(&a.memory),
            Order::Requests => descending(|it| it.requests_per_s),
            Order::Traffic => descending(|it| it.bytes_in_per_s + it.bytes_out_per_s),
            Order::Queue => b.queue.cmp(&a.queue),
            Order::Kills => b.kills.cmp(&a.kills),
            Order::Guest => Ordering::Equal,
        }
    }
}

impl Column {
    fn alignment(&self) -> Alignment {
        match self.right {
            true => Alignment::Right,
            false => Alignment::Left,
        }
    }

    /// Characters of its widest cell.
    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| cell.chars().count());
        let widest = cells.max().unwrap_or(0).max(self.heading.len());
        match self.heading {
            "GUEST" => widest.min(WIDEST_NAME),
            _ => widest,
        }
    }
}

/// Removes columns until the others have room, and gives their widths. The name of the guest is cut first, down to
/// [`NAME`] characters.
fn fit(columns: &mut Vec<Column>, room: usize) -> Vec<usize> {
    loop {
        let mut widths: Vec<usize> = columns.iter().map(Column::width).collect();
        let needed =
            widths.iter().sum::<usize>() + usize::from(GAP) * widths.len().saturating_sub(1);
        let over = needed.saturating_sub(room);
        let spare = widths.first().map_or(0, |name| name.saturating_sub(NAME));
        if over <= spare || columns.len() <= 1 {
            if let Some(name) = widths.first_mut() {
                *name -= over.min(*name);
            }
            return widths;
        }
        let lowest = columns.iter().enumerate().min_by_key(|(_, it)| it.rank);
        if let Some((lowest, _)) = lowest {
            columns.remove(lowest);
        }
    }
}

fn heading(status: &Status) -> Paragraph<'static> {
    let stopping = if status.stopping { ", STOPPING" } else { "" };
    let warm = match &status.warm {
        Some(warm) => format!(", {} of {} warm", warm.ready(), warm.wanted),
        None => String::new(),
    };
    let text = format!(
        " vgpu-mediatord {}, pid {}, up {}{stopping}   {} of {} sessions, {} refused so far{warm}",
        status.version,
        status.pid,
        duration(status.uptime_s),
        status.sessions.len(),
        status.limits.max_sessions,
        status.refused,
    );
    Paragraph::new(text).style(Style::new().add_modifier(Modifier::BOLD))
}

/// The device: its name, how much of the time it works, and how much of its memory guests have.
fn draw_device(frame: &mut Frame<'_>, area: Rect, look: &Look) {
    let executor = &look.status.executor;
    let driver = match executor.driver.as_str() {
        "" => String::new(),
        driver => format!(", driver {driver}"),
    };
    let title = format!(" {}: {}{driver} ", executor.kind, executor.device);
    let block = Block::bordered().title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [busy, used] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)])
        .spacing(2)
        .areas(inner);
    let gauge = |label: String, ratio: f64| {
        LineGauge::default()
            .label(label)
            .ratio(ratio.clamp(0.0, 1.0))
            .filled_style(Style::new().fg(Color::Green))
            .unfilled_style(Style::new().fg(Color::DarkGray))
    };
    let label = format!("works {:.0} %", look.device_percent);
    frame.render_widget(gauge(label, look.device_percent / 100.0), busy);
    let memory: u64 = look.status.guests.iter().map(|it| it.standing.memory).sum();
    let total = executor.total_memory;
    let label = format!("memory {} of {}", bytes(memory as f64), bytes(total as f64));
    frame.render_widget(gauge(label, memory as f64 / total.max(1) as f64), used);
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::fs;
    use std::path::{Path, PathBuf};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::{Buffer, Cell};
    use vgpu_mediator::control::Guest;

    use super::*;

    /// Set to write the files that these tests compare with.
    const UPDATE: &str = "UPDATE_SNAPSHOTS";

    fn look() -> Look {
        let status = r#"{"version":"0.1.0","pid":4711,"uptime_s":93784,"stopping":false,"listen":["xen:"],
            "executor":{"kind":"cuda","device":"NVIDIA H200","total_memory":150000000000,"driver":"570.86",
            "reason":""},"gpus":[{"index":0,"uuid":"GPU-0a","name":"NVIDIA H200","total_memory":150000000000,
            "memory_used":24500000000,"busy_percent":83,"temperature_c":61,"power_mw":402500,"power_limit_mw":700000,
            "ecc_corrected":3,"ecc_uncorrected":0,"age_s":0},{"index":1,"uuid":"GPU-0b","name":"NVIDIA H200",
            "total_memory":150000000000,"memory_used":600000000,"age_s":0}],"limits":{"max_sessions":64,"max_sessions_per_guest":4},"allow_all":false,
            "warm":{"wanted":4,"workers":[{"pid":4800,"state":"ready"}],"sessions":60,"cold_sessions":2,
            "cold_endpoints":[]},"sessions_started":81,"refused":3,"usage":{},"guests":[],"sessions":[]}"#;
        let mut status: Status = serde_json::from_str(status).unwrap();
        let guest = |name: &str, device: f64, memory: u64, sessions: u8, kills| GuestRates {
            guest: name.to_owned(),
            guest_id: String::new(),
            weight: Some(1 + u32::from(sessions)),
            sessions: sessions.into(),
            memory,
            memory_limit: 32_000_000_000,
            queue: if name == "guest 3 (db)" {
                9
            } else {
                u64::from(sessions) - 1
            },
            device_percent: device,
            device_share_percent: Some(device * 1.25),
            requests_per_s: device * 141.5,
            failed_per_s: kills as f64 * 0.5,
            bytes_in_per_s: device * 31_234_567.0,
            bytes_out_per_s: device * 1_234_567.0,
            kills,
        };
        let guests = vec![
            guest("guest 3 (db)", 8.0, 1_500_000_000, 1, 0),
            guest("guest 7 (web-1)", 60.0, 21_300_000_000, 3, 2),
            guest(
                "tcp a-client-with-a-name-that-is-far-too-long-for-any-column",
                12.0,
                4_000_000,
                1,
                0,
            ),
            guest("local uid 1000", 0.0, 0, 1, 1),
        ];
        let session = |session, guest: &str, device: f64| Rates {
            session,
            guest: guest.to_owned(),
            guest_id: String::new(),
            state: "serving".into(),
            client: Some("trainer 2.1 (python)".into()),
            age_s: session * 977,
            requests_per_s: device * 70.0,
            bytes_in_per_s: device * 15_000_000.0,
            bytes_out_per_s: device * 600_000.0,
            device_percent: device,
        };
        let sessions = vec![
            session(12, "guest 7 (web-1)", 41.0),
            session(13, "guest 7 (web-1)", 19.0),
            session(14, "guest 3 (db)", 8.0),
        ];
        let running = r#"{"session":12,"guest":"","pid":9,"age_s":1,"state":"serving","client":null,"usage":{},
            "current":true}"#;
        status.sessions = vec![serde_json::from_str(running).unwrap(); 3];
        status.guests = guests.iter().map(|it| held(it.memory)).collect();
        Look {
            status,
            guests,
            sessions,
            device_percent: 80.0,
        }
    }

    /// A guest of which only the memory counts here.
    fn held(memory: u64) -> Guest {
        let text = format!(
            r#"{{"guest":"","sessions":1,"sessions_started":1,"refused":0,"memory":{memory},"usage":{{}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn drawn(screen: &mut Screen, look: &Look, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame, look)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn lines(buffer: &Buffer) -> Vec<String> {
        let width = usize::from(buffer.area.width);
        let lines = buffer.content.chunks(width);
        let lines = lines.map(|line| line.iter().map(Cell::symbol).collect::<String>());
        lines.map(|line| line.trim_end().to_owned()).collect()
    }

    fn is_as_in(file: &Path, text: &str) {
        if std::env::var_os(UPDATE).is_some() {
            fs::write(file, text).unwrap();
        }
        let wanted = fs::read_to_string(file).unwrap_or_default();
        let name = file.display();
        assert!(
            wanted == text,
            "{name} differs; with {UPDATE}=1 the test writes it:\n{text}"
        );
    }

    fn crate_root() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn a_screen_of_any_width_is_as_it_was_looked_at() {
        for (width, height) in [(130, 20), (80, 24), (44, 14)] {
            let buffer = drawn(&mut Screen::new(), &look(), width, height);
            let name = format!("src/bin/vgpuctl/top/snapshots/{width}x{height}.txt");
            is_as_in(
                &crate_root().join(name),
                &(lines(&buffer).join("\n") + "\n"),
            );
        }
    }

    #[test]
    fn the_picture_in_the_documents_is_of_this_program() {
        let buffer = drawn(&mut Screen::new(), &look(), 110, 22);
        is_as_in(&crate_root().join("../docs/top.svg"), &svg(&buffer));
    }

    #[test]
    fn no_size_of_a_terminal_is_too_small() {
        for width in 0..60 {
            for height in 0..12 {
                drawn(&mut Screen::new(), &look(), width, height);
            }
        }
    }

    #[test]
    fn each_key_sorts_and_q_quits() {
        let mut screen = Screen::new();
        let look = look();
        let mut first = |key| {
            assert_eq!(screen.typed(key), Reaction::Redraw);
            let lines = lines(&drawn(&mut screen, &look, 160, 20));
            let row = lines
                .iter()
                .skip_while(|line| !line.contains("GUEST"))
                .nth(1);
            row.unwrap()[3..]
                .trim_start()
                .split("  ")
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(first('s'), "guest 7 (web-1)");
        assert_eq!(first('M'), "guest 7 (web-1)");
        assert_eq!(first('g'), "guest 3 (db)");
        assert_eq!(first('k'), "guest 7 (web-1)");
        assert_eq!(first('u'), "guest 3 (db)");
        for key in ['d', 'r', 't'] {
            assert_eq!(first(key), "guest 7 (web-1)", "{key}");
        }
        assert_eq!(screen.typed('x'), Reaction::Nothing);
        assert_eq!(screen.typed('q'), Reaction::Quit);
    }

    #[test]
    fn many_guests_are_scrolled_and_names_cannot_move_the_cursor() {
        let mut look = look();
        look.status.gpus.clear();
        let one = |n: u32| GuestRates {
            guest: format!("g\u{1b}[2J\n{n:03}"),
            guest_id: String::new(),
            weight: None,
            sessions: 1,
            memory: 0,
            memory_limit: 0,
            queue: 0,
            device_percent: 0.0,
            device_share_percent: None,
            requests_per_s: 0.0,
            failed_per_s: 0.0,
            bytes_in_per_s: 0.0,
            bytes_out_per_s: 0.0,
            kills: 0,
        };
        look.guests = (0..100).map(one).collect();
        let mut screen = Screen::new();
        let title = |screen: &mut Screen| {
            let buffer = drawn(screen, &look, 80, 24);
            let symbols = buffer.content.iter().flat_map(|cell| cell.symbol().chars());
            assert!(!symbols.clone().any(char::is_control));
            lines(&buffer)
                .into_iter()
                .find(|line| line.contains(" guests "))
                .unwrap()
        };
        assert!(
            title(&mut screen).contains(" guests 1 to 9 of 100 "),
            "{}",
            title(&mut screen)
        );
        screen.scroll(10);
        assert!(title(&mut screen).contains(" guests 11 to 19 of 100 "));
        screen.scroll(1000);
        assert!(title(&mut screen).contains(" guests 92 to 100 of 100 "));
        screen.scroll(-1000);
        assert!(title(&mut screen).contains(" guests 1 to 9 of 100 "));
    }

    /// The buffer as a picture: each run of cells in one style is a text of its width.
    fn svg(buffer: &Buffer) -> String {
        const CELL: usize = 8;
        const LINE: usize = 17;
        let (width, height) = (
            usize::from(buffer.area.width),
            usize::from(buffer.area.height),
        );
        let (across, down) = (width * CELL + 20, height * LINE + 20);
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{across}\" height=\"{down}\" \
             font-family=\"monospace\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#16181d\"/>\n"
        );
        for (number, line) in buffer.content.chunks(width).enumerate() {
            let y = 10 + number * LINE;
            let mut x = 0;
            for run in line.chunk_by(|a, b| a.style() == b.style()) {
                let symbols: String = run.iter().map(Cell::symbol).collect();
                let (left, long) = (10 + x * CELL, run.len() * CELL);
                x += run.len();
                let (mut ink, mut ground) = (colour(run[0].fg, "#d6d9de"), colour(run[0].bg, ""));
                if run[0].modifier.contains(Modifier::REVERSED) {
                    (ink, ground) = ("#16181d", ink);
                }
                if !ground.is_empty() {
                    let _ = writeln!(
                        text,
                        "<rect x=\"{left}\" y=\"{y}\" width=\"{long}\" height=\"{LINE}\" fill=\"{ground}\"/>"
                    );
                }
                if symbols.trim().is_empty() {
                    continue;
                }
                let bold = match run[0].modifier.contains(Modifier::BOLD) {
                    true => " font-weight=\"bold\"",
                    false => "",
                };
                let symbols = symbols.replace('&', "&amp;").replace('<', "&lt;");
                let _ = writeln!(
                    text,
                    "<text x=\"{left}\" y=\"{}\" textLength=\"{long}\" fill=\"{ink}\"{bold} \
                     xml:space=\"preserve\">{symbols}</text>",
                    y + 13
                );
            }
        }
        text.push_str("</svg>\n");
        text
    }

    fn colour(colour: Color, default: &'static str) -> &'static str {
        match colour {
            Color::Reset => default,
            Color::Green => "#7fbf6a",
            Color::DarkGray => "#4a4f58",
            Color::Cyan => "#5fb3c9",
            other => panic!("{other} has no place in the picture"),
        }
    }
}
