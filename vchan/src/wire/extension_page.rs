#![forbid(unsafe_code)]
//! The extension page in shared memory; its fields are described in
//! [`extension`](crate::extension).

use crate::error::{Error, PeerError, Result, RingName};
use crate::sync::atomic::Ordering;
use crate::wire::extension::{
    ACCEPTANCE_BYTES, Acceptance, EXTRA_GRANTS_MAX, HEADER_BYTES, Header, NONCE_BYTES, Nonce,
    offset,
};
use crate::wire::layout::PAGE;
use crate::wire::shm::{Region, SharedU32};

/// The extension page of one channel.
#[derive(Debug)]
pub struct ExtensionPage {
    page: Region,
}

/// The words of one ring.
#[derive(Debug)]
pub(crate) struct RingWords {
    pub(crate) prod: SharedU32,
    pub(crate) cons: SharedU32,
    /// The index at which the reader wants to be woken.
    pub(crate) reader_wait: SharedU32,
    /// The index at which the writer wants to be woken.
    pub(crate) writer_wait: SharedU32,
    /// Whether the writer has completed the stream rather than just gone.
    pub(crate) ended: SharedU32,
}

impl ExtensionPage {
    /// Takes a writable region of one page.
    ///
    /// # Panics
    /// If it is not; backends map it themselves, so the peer cannot cause this.
    pub(crate) fn new(page: Region) -> Self {
        assert_eq!(page.len(), PAGE, "the extension page is one page");
        assert!(
            page.is_writable(),
            "the extension page must be writable for both"
        );
        Self { page }
    }

    /// The page's memory, for hostile peers.
    #[cfg(feature = "testing")]
    pub(crate) fn region(&self) -> &Region {
        &self.page
    }

    /// Server: clears the page and writes the offer, before a client can know of the page.
    pub(crate) fn initialise(&self, offer: &Header, first_index: u32) {
        self.page.zero();
        for ring in [RingName::Left, RingName::Right] {
            let words = self.words(ring);
            words.prod.store(first_index, Ordering::Relaxed);
            words.cons.store(first_index, Ordering::Relaxed);
        }
        self.page.copy_in(offset::HEADER, &offer.encode());
    }

    /// Server: writes entry `index` of the list of extra grants.
    ///
    /// # Panics
    /// If there is no such entry.
    pub(crate) fn set_extra_grant(&self, index: usize, grant_ref: u32) {
        assert!(index < EXTRA_GRANTS_MAX);
        self.page
            .word(offset::EXTRA_GRANTS + 4 * index)
            .store(grant_ref, Ordering::Relaxed);
    }

    /// Client: reads the first `count` entries of the list of extra grants, once.
    ///
    /// # Panics
    /// If there are not that many.
    pub(crate) fn extra_grants(&self, count: usize) -> Vec<u32> {
        assert!(count <= EXTRA_GRANTS_MAX);
        let mut bytes = vec![0; 4 * count];
        self.page.copy_out(offset::EXTRA_GRANTS, &mut bytes);
        bytes
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
            .collect()
    }

    /// Client: reads the offer, once.
    ///
    /// # Errors
    /// [`PeerError::Extension`] if the page is not an extension page.
    pub(crate) fn header(&self) -> Result<Header, PeerError> {
        let mut bytes = [0; HEADER_BYTES];
        self.page.copy_out(offset::HEADER, &mut bytes);
        Ok(Header::decode(&bytes)?)
    }

    /// Client: accepts. The caller declares itself connected next, which publishes this.
    pub(crate) fn accept(&self, acceptance: &Acceptance) {
        self.page.copy_in(offset::ACCEPTANCE, &acceptance.encode());
    }

    /// Server: reads the answer to `offer`, once, when the client has connected; `None` if it uses
    /// the classic format. Later changes by the client have no effect.
    ///
    /// # Errors
    /// [`PeerError::Extension`].
    pub(crate) fn acceptance(&self, offer: &Header) -> Result<Option<Acceptance>, PeerError> {
        let mut bytes = [0; ACCEPTANCE_BYTES];
        self.page.copy_out(offset::ACCEPTANCE, &mut bytes);
        Ok(Acceptance::decode(&bytes).check(offer)?)
    }

    pub(crate) fn words(&self, ring: RingName) -> RingWords {
        let (prod, cons, reader_wait, writer_wait, ended) = match ring {
            RingName::Left => (
                offset::LEFT_PROD,
                offset::LEFT_CONS,
                offset::LEFT_READER_WAIT,
                offset::LEFT_WRITER_WAIT,
                offset::LEFT_ENDED,
            ),
            RingName::Right => (
                offset::RIGHT_PROD,
                offset::RIGHT_CONS,
                offset::RIGHT_READER_WAIT,
                offset::RIGHT_WRITER_WAIT,
                offset::RIGHT_ENDED,
            ),
        };
        RingWords {
            prod: self.page.word(prod),
            cons: self.page.word(cons),
            reader_wait: self.page.word(reader_wait),
            writer_wait: self.page.word(writer_wait),
            ended: self.page.word(ended),
        }
    }
}

/// A nonce that nobody can guess.
///
/// # Errors
/// [`Error::Os`] if the system has no random bytes.
pub(crate) fn new_nonce() -> Result<Nonce> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| {
        Error::os(
            "cannot get random bytes for a channel's nonce",
            std::io::Error::other(error.to_string()),
        )
    })?;
    Ok(nonce)
}
