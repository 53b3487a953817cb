//! The data of one request, straight from and to the caller's slices, or gathered from rows and scattered to them.

/// Rows shorter than this are gathered and scattered through a buffer of this many bytes.
const PACK: usize = 64 << 10;

/// The data of a call.
pub(crate) struct Data<'d> {
    pub(crate) up: Outgoing<'d>,
    pub(crate) down: Incoming<'d>,
}

impl<'d> Data<'d> {
    /// For a request that has none.
    pub(crate) fn none() -> Self {
        Self::up(&[])
    }

    /// For a request whose data goes up.
    pub(crate) fn up(bytes: &'d [u8]) -> Self {
        Self {
            up: Outgoing { bytes, rows: None },
            down: Incoming::new(&mut [], None),
        }
    }

    /// The same for rows of `width` bytes, each beginning `pitch` bytes after the one before it. The last one ends
    /// with `bytes` or before.
    pub(crate) fn up_rows(bytes: &'d [u8], pitch: usize, width: usize) -> Self {
        let mut data = Self::none();
        data.up.rows = Some(Gather {
            rows: Shape { pitch, width },
            packed: Vec::new(),
            at: 0,
        });
        data.up.bytes = bytes;
        data
    }

    /// The same for rows of `width` bytes, each beginning `pitch` bytes after the one before it.
    pub(crate) fn down_rows(to: &'d mut [u8], pitch: usize, width: usize) -> Self {
        let mut data = Self::down(to);
        data.down.rows = Some(Scatter {
            rows: Shape { pitch, width },
            packed: Vec::new(),
        });
        data
    }

    /// For a request whose data comes down, into `to`.
    pub(crate) fn down(to: &'d mut [u8]) -> Self {
        Self {
            up: Outgoing {
                bytes: &[],
                rows: None,
            },
            down: Incoming::new(to, None),
        }
    }

    /// The same, telling `progress` how many bytes have come.
    pub(crate) fn watched(mut self, progress: &'d mut dyn FnMut(usize)) -> Self {
        self.down.progress = Some(progress);
        self
    }
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    pitch: usize,
    width: usize,
}

impl Shape {
    /// Whether rows are moved one by one.
    fn is_long(self) -> bool {
        self.width >= PACK
    }

    /// Short rows that fit into the buffer.
    fn in_pack(self) -> usize {
        PACK / self.width
    }
}

/// Data to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing<'d> {
    /// Bytes not sent yet; for rows the bytes not gathered yet, from the beginning of a row on.
    bytes: &'d [u8],
    rows: Option<Gather>,
}

#[derive(Debug)]
struct Gather {
    rows: Shape,
    /// Short rows behind each other.
    packed: Vec<u8>,
    /// Bytes of them, or of the first long row, that were sent.
    at: usize,
}

impl Outgoing<'_> {
    /// The next bytes, at most `most`.
    pub(crate) fn next(&mut self, most: usize) -> &[u8] {
        let next = match &mut self.rows {
            None => self.bytes,
            Some(gather) if gather.rows.is_long() => {
                let width = gather.rows.width.min(self.bytes.len());
                &self.bytes[gather.at..width]
            }
            Some(gather) => {
                if gather.at == gather.packed.len() {
                    gather.pack(&mut self.bytes);
                }
                &gather.packed[gather.at..]
            }
        };
        &next[..next.len().min(most)]
    }

    /// Notes that `n` bytes were sent.
    pub(crate) fn advance(&mut self, n: usize) {
        match &mut self.rows {
            None => self.bytes = &self.bytes[n..],
            Some(gather) => {
                gather.at += n;
                if gather.rows.is_long() && gather.at == gather.rows.width {
                    gather.at = 0;
                    let next = gather.rows.pitch.min(self.bytes.len());
                    self.bytes = &self.bytes[next..];
                }
            }
        }
    }
}

impl Gather {
    /// The next rows behind each other.
    fn pack(&mut self, bytes: &mut &[u8]) {
        let Shape { pitch, width } = self.rows;
        self.packed.clear();
        self.at = 0;
        for _ in 0..self.rows.in_pack() {
            if bytes.len() < width {
                break;
            }
            self.packed.extend_from_slice(&bytes[..width]);
            *bytes = &bytes[pitch.min(bytes.len())..];
        }
    }
}

/// Destination of received data.
pub(crate) struct Incoming<'d> {
    to: &'d mut [u8],
    /// Bytes of data that have come.
    filled: usize,
    rows: Option<Scatter>,
    /// Receives the number of bytes filled.
    progress: Option<&'d mut dyn FnMut(usize)>,
}

struct Scatter {
    rows: Shape,
    /// Buffer in which short rows arrive.
    packed: Vec<u8>,
}

impl<'d> Incoming<'d> {
    /// Fills `to`, telling `progress` after every step.
    fn new(to: &'d mut [u8], progress: Option<&'d mut dyn FnMut(usize)>) -> Self {
        Self {
            to,
            filled: 0,
            rows: None,
            progress,
        }
    }

    /// Room for the next bytes.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        match &mut self.rows {
            None => &mut self.to[self.filled..],
            Some(scatter) if scatter.rows.is_long() => {
                let (start, left) = scatter.place(self.filled);
                let end = self.to.len().min(start + left);
                &mut self.to[start.min(end)..end]
            }
            Some(scatter) => {
                scatter.packed.resize(PACK, 0);
                &mut scatter.packed
            }
        }
    }

    /// Notes that `n` bytes were put there.
    pub(crate) fn received(&mut self, n: usize) {
        match &self.rows {
            Some(scatter) if !scatter.rows.is_long() => {
                let mut packed = &scatter.packed[..n];
                let mut filled = self.filled;
                while !packed.is_empty() {
                    let (start, left) = scatter.place(filled);
                    let (part, rest) = packed.split_at(left.min(packed.len()));
                    self.to[start..start + part.len()].copy_from_slice(part);
                    filled += part.len();
                    packed = rest;
                }
            }
            _ => {}
        }
        self.filled += n;
        if let Some(progress) = &mut self.progress {
            progress(self.filled);
        }
    }
}

impl Scatter {
    /// Index of the byte after `filled` bytes of the data, and the number of bytes left of its row.
    fn place(&self, filled: usize) -> (usize, usize) {
        let Shape { pitch, width } = self.rows;
        let (row, at) = (filled / width, filled % width);
        (row * pitch + at, width - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> Vec<(usize, usize, usize)> {
        let widths = [1, 3, 1000, PACK / 2, PACK - 1, PACK, PACK + 1, 3 * PACK + 5];
        let pitches = |width| [width, width + 1, 2 * width];
        let of = |width| pitches(width).map(|pitch| (width, pitch));
        let shapes = widths.into_iter().flat_map(of);
        shapes
            .flat_map(|(width, pitch)| [1, 2, 5].map(|height| (width, pitch, height)))
            .collect()
    }

    fn bytes(n: usize) -> Vec<u8> {
        (0..=250).cycle().take(n).collect()
    }

    #[test]
    fn rows_are_gathered_in_order_and_what_is_between_them_stays() {
        for (width, pitch, height) in shapes() {
            for most in [7, PACK, usize::MAX] {
                let whole = bytes((height - 1) * pitch + width);
                let mut data = Data::up_rows(&whole, pitch, width);
                let mut sent = Vec::new();
                // The memory may end with the last row or go on.
                while sent.len() < width * height {
                    let next = data.up.next(most.min(width * height - sent.len()));
                    assert!(!next.is_empty(), "{width} {pitch} {height}");
                    // As a stream that takes what it can.
                    let n = next.len().div_ceil(2);
                    sent.extend_from_slice(&next[..n]);
                    data.up.advance(n);
                }
                let rows = whole.chunks(pitch).map(|row| &row[..width]);
                assert!(sent == rows.collect::<Vec<_>>().concat(), "{width} {pitch}");
            }
        }
    }

    #[test]
    fn rows_are_scattered_to_where_they_belong() {
        for (width, pitch, height) in shapes() {
            let data = bytes(width * height);
            let mut to = vec![0xee; (height - 1) * pitch + width];
            let mut down = Data::down_rows(&mut to, pitch, width);
            let mut left = &data[..];
            while !left.is_empty() {
                let space = down.down.space();
                let n = space.len().min(left.len()).div_ceil(2);
                space[..n].copy_from_slice(&left[..n]);
                down.down.received(n);
                left = &left[n..];
            }
            let mut wanted = vec![0xee; to.len()];
            for (row, from) in data.chunks(width).enumerate() {
                wanted[row * pitch..row * pitch + width].copy_from_slice(from);
            }
            assert!(to == wanted, "{width} {pitch} {height}");
        }
    }
}
