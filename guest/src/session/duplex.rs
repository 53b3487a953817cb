//! Sending and receiving at once, on one thread.

use vgpu_protocol::clock;
use vgpu_protocol::transport::{Interest, TransportError};

use super::{Incoming, Outgoing, Wire};
use crate::error::Cause;

/// Sends all of `outgoing` while receiving all of `incoming`; returns the final reply's body.
///
/// The transport's own buffer is the only thing between the two directions: as much is under way
/// as fits it and the mediator's pipeline. `progress` is told the bytes of the result received.
///
/// # Errors
/// After an error for which [`Cause::ends_session`] is false, the input was ended as the protocol
/// wants it and the session can go on.
pub(crate) fn exchange_vectors(
    wire: &mut Wire,
    outgoing: &mut Outgoing<'_>,
    incoming: &mut Incoming<'_>,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<u8>, Cause> {
    let mut moved = clock::now();
    // Set when the mediator closed: what it said before is still read.
    let mut deaf = false;
    let mut reply: Option<Result<Vec<u8>, Cause>> = None;
    loop {
        // Not only in waits: a fast mediator may leave no reason to wait.
        wire.check_interrupt()?;
        let mut idle = true;
        if reply.is_none() {
            match wire.transport.try_read(incoming.space())? {
                Some(0) => return Err(TransportError::Closed.into()),
                Some(n) => {
                    idle = false;
                    match incoming.advance(n) {
                        Ok(None) => progress(incoming.received()),
                        Ok(Some(body)) => reply = Some(Ok(body)),
                        Err(cause) if cause.ends_session() => return Err(cause),
                        Err(refused) => {
                            outgoing.cut();
                            reply = Some(Err(refused));
                        }
                    }
                }
                None => {}
            }
        }
        let sending = !deaf && !outgoing.is_finished();
        if sending {
            match wire.transport.try_write(outgoing.pending()) {
                Ok(0) => {}
                Ok(n) => {
                    idle = false;
                    wire.unflushed = true;
                    outgoing.advance(n);
                }
                Err(TransportError::Closed) if reply.is_none() => {
                    idle = false;
                    deaf = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        match reply.take() {
            Some(Ok(_)) if !outgoing.is_finished() => {
                return Err(Cause::Protocol(
                    "the reply came before the input was sent".into(),
                ));
            }
            // To a mediator that has closed, the rest can never be sent.
            Some(reply) if deaf || outgoing.is_finished() => return reply,
            unfinished => reply = unfinished,
        }
        if !idle {
            moved = clock::now();
            continue;
        }
        let interest = match (reply.is_none(), sending) {
            (true, true) => Interest::ReadOrWrite,
            (true, false) => Interest::Read,
            (false, _) => Interest::Write,
        };
        wire.wait(interest, moved)?;
    }
}
