//! The data of one request, straight from and to the caller's slices.

/// The data of a call.
pub(crate) struct Data<'d> {
    pub(crate) up: Outgoing<'d>,
    pub(crate) down: Incoming<'d>,
}

impl Data<'_> {
    /// For a request that has none.
    pub(crate) fn none() -> Self {
        Self {
            up: Outgoing::NONE,
            down: Incoming::new(&mut [], None),
        }
    }
}

/// What goes up: chunk 0 of every vector, then chunk 1 of every vector, and so on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'d> {
    /// All of the same length.
    vectors: &'d [&'d [u8]],
    chunk: usize,
    sent: usize,
}

impl<'d> Outgoing<'d> {
    /// For a request that has no data.
    pub(crate) const NONE: Outgoing<'static> = Outgoing {
        vectors: &[],
        chunk: 1,
        sent: 0,
    };

    /// `vectors`, all of the same length, interleaved by `chunk` bytes.
    pub(crate) fn interleaved(vectors: &'d [&'d [u8]], chunk: usize) -> Self {
        let len = vectors.first().map_or(0, |vector| vector.len());
        assert!(chunk > 0 && vectors.iter().all(|vector| vector.len() == len));
        Self {
            vectors,
            chunk: chunk.min(len.max(1)),
            sent: 0,
        }
    }

    /// Fills `pieces` with the next bytes, at most `most`; returns how many pieces that takes.
    pub(crate) fn gather(&self, mut most: usize, pieces: &mut [&'d [u8]]) -> usize {
        let mut at = self.sent;
        let mut filled = 0;
        for slot in pieces {
            let piece = self.piece(at);
            let piece = &piece[..piece.len().min(most)];
            if piece.is_empty() {
                break;
            }
            *slot = piece;
            filled += 1;
            at += piece.len();
            most -= piece.len();
        }
        filled
    }

    /// Notes that `n` bytes were sent.
    pub(crate) fn advance(&mut self, n: usize) {
        self.sent += n;
    }

    /// What lies together from byte `at` of the whole data on.
    fn piece(&self, at: usize) -> &'d [u8] {
        let len = self.vectors.first().map_or(0, |vector| vector.len());
        let round = self.vectors.len() * self.chunk;
        if at >= self.vectors.len() * len {
            return &[];
        }
        let start = at / round * self.chunk;
        let end = len.min(start + self.chunk);
        let within = at % round;
        let size = end - start;
        &self.vectors[within / size][start + within % size..end]
    }
}

/// Where what comes down belongs.
pub(crate) struct Incoming<'d> {
    to: &'d mut [u8],
    filled: usize,
    /// Receives the number of bytes filled.
    progress: Option<&'d mut dyn FnMut(usize)>,
}

impl<'d> Incoming<'d> {
    /// Fills `to`, telling `progress` after every step.
    pub(crate) fn new(to: &'d mut [u8], progress: Option<&'d mut dyn FnMut(usize)>) -> Self {
        Self {
            to,
            filled: 0,
            progress,
        }
    }

    /// Where the next bytes belong.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        &mut self.to[self.filled..]
    }

    /// Notes that `n` bytes were put there.
    pub(crate) fn received(&mut self, n: usize) {
        self.filled += n;
        if let Some(progress) = &mut self.progress {
            progress(self.filled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All bytes of `outgoing`, taken by at most `most` bytes and 3 pieces at a time.
    fn all(mut outgoing: Outgoing<'_>, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let mut pieces: [&[u8]; 3] = [&[]; 3];
            let n = outgoing.gather(most, &mut pieces);
            let taken = pieces[..n].concat();
            if taken.is_empty() {
                return bytes;
            }
            assert!(taken.len() <= most);
            outgoing.advance(taken.len());
            bytes.extend(taken);
        }
    }

    #[test]
    fn chunks_of_all_vectors_take_turns_however_many_bytes_are_taken() {
        let (a, b): (Vec<u8>, Vec<u8>) = ((0..10).collect(), (100..110).collect());
        let wanted = [&a[0..4], &b[0..4], &a[4..8], &b[4..8], &a[8..10], &b[8..10]].concat();
        for most in [1, 2, 3, 5, 7, 100] {
            let vectors = [&a[..], &b[..]];
            assert_eq!(all(Outgoing::interleaved(&vectors, 4), most), wanted);
            // Longer than the vectors.
            let whole = all(Outgoing::interleaved(&vectors, usize::MAX), most);
            assert_eq!(whole, [&a[..], &b[..]].concat());
            let one = [&a[..]];
            assert_eq!(all(Outgoing::interleaved(&one, 3), most), a);
        }
        assert!(all(Outgoing::NONE, 9).is_empty());
        assert!(all(Outgoing::interleaved(&[&[], &[]], 4), 9).is_empty());
    }
}
