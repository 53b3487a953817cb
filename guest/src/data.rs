//! The data of one request, straight from and to the caller's slices.

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
            up: Outgoing { bytes },
            down: Incoming::new(&mut [], None),
        }
    }

    /// For a request whose data comes down, into `to`.
    pub(crate) fn down(to: &'d mut [u8]) -> Self {
        Self {
            up: Outgoing { bytes: &[] },
            down: Incoming::new(to, None),
        }
    }

    /// The same, telling `progress` how many bytes have come.
    pub(crate) fn watched(mut self, progress: &'d mut dyn FnMut(usize)) -> Self {
        self.down.progress = Some(progress);
        self
    }
}

/// What goes up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outgoing<'d> {
    /// What was not sent yet.
    bytes: &'d [u8],
}

impl<'d> Outgoing<'d> {
    /// The next bytes, at most `most`.
    pub(crate) fn next(&self, most: usize) -> &'d [u8] {
        &self.bytes[..self.bytes.len().min(most)]
    }

    /// Notes that `n` bytes were sent.
    pub(crate) fn advance(&mut self, n: usize) {
        self.bytes = &self.bytes[n..];
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
    fn new(to: &'d mut [u8], progress: Option<&'d mut dyn FnMut(usize)>) -> Self {
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
