//! Bytes to frames, without I/O: says where the next received bytes belong.

use vgpu_protocol::frame::{FrameError, FrameHeader, HeaderBuffer};
use vgpu_protocol::message::Op;

/// What became complete with the bytes just received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Nothing yet.
    None,
    /// A whole control frame. Its body is at most 4096 bytes, which the header's check ensures.
    Frame(FrameHeader, Vec<u8>),
    /// The header of a Data frame. Its body belongs to whoever takes part in the request.
    Data(FrameHeader),
}

/// Assembles frames. Bodies of Data frames never pass through here.
#[derive(Debug, Default)]
pub struct Inbox {
    /// The other side is a mediator, which only answers.
    replies: bool,
    header: HeaderBuffer,
    control: Option<(FrameHeader, Vec<u8>, usize)>,
}

impl Inbox {
    /// For what a mediator sends; [`default`](Self::default) is for what a guest sends.
    pub fn of_replies() -> Self {
        Self {
            replies: true,
            ..Self::default()
        }
    }

    /// Where the next bytes belong; never empty.
    pub fn unfilled(&mut self) -> &mut [u8] {
        match &mut self.control {
            Some((_, body, filled)) => &mut body[*filled..],
            None => self.header.unfilled(),
        }
    }

    /// Notes that `received` bytes were put into [`unfilled`](Self::unfilled).
    ///
    /// # Errors
    /// The header breaks a rule; the stream is unusable from here on.
    pub fn advance(&mut self, received: usize) -> Result<Event, FrameError> {
        if let Some((header, body, filled)) = &mut self.control {
            *filled = filled.saturating_add(received);
            if *filled < body.len() {
                return Ok(Event::None);
            }
            let event = Event::Frame(*header, std::mem::take(body));
            self.control = None;
            return Ok(event);
        }
        let Some(header) = self.header.advance(received)? else {
            return Ok(Event::None);
        };
        // A reply of a guest, or a request of a mediator, has no business here, and its Data
        // bodies may be large: no body is taken for it, the rules end the session.
        if header.is_reply() != self.replies {
            return Ok(Event::Frame(header, Vec::new()));
        }
        if header.op == Op::Data {
            return Ok(Event::Data(header));
        }
        if header.body_len == 0 {
            return Ok(Event::Frame(header, Vec::new()));
        }
        let body_len = header.body_len as usize;
        self.control = Some((header, vec![0; body_len], 0));
        Ok(Event::None)
    }

    /// Whether a frame has begun and is not complete.
    pub fn is_partial(&self) -> bool {
        self.control.is_some() || self.header.is_partial()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vgpu_protocol::frame::Flags;

    fn feed(inbox: &mut Inbox, mut bytes: &[u8], portion: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let room = inbox.unfilled();
            let n = room.len().min(portion).min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            match inbox.advance(n).unwrap() {
                Event::None => {}
                event => events.push(event),
            }
        }
        events
    }

    #[test]
    fn frames_come_out_whatever_the_portions() {
        let ping = FrameHeader::request(Op::Ping, 9).with_body_len(3);
        let info = FrameHeader::request(Op::Info, 10);
        let bytes = [&ping.encode()[..], b"abc", &info.encode()[..]].concat();
        for portion in [1, 2, 39, 40, 41, 1000] {
            let mut inbox = Inbox::default();
            let events = feed(&mut inbox, &bytes, portion);
            assert_eq!(
                events,
                [
                    Event::Frame(ping, b"abc".to_vec()),
                    Event::Frame(info, Vec::new())
                ]
            );
            assert!(!inbox.is_partial());
        }
    }

    #[test]
    fn data_bodies_are_left_to_the_caller() {
        let data = FrameHeader::request(Op::Data, 3)
            .with_flags(Flags::MORE)
            .with_body_len(1 << 20);
        let mut inbox = Inbox::default();
        assert_eq!(feed(&mut inbox, &data.encode(), 7), [Event::Data(data)]);
        assert!(!inbox.is_partial());
    }

    #[test]
    fn each_side_is_told_apart_by_its_flags() {
        let asked = FrameHeader::request(Op::Data, 3).with_body_len(1 << 20);
        let answered = FrameHeader::data_reply_to(&asked, 1 << 20);
        for (mut inbox, mine, foreign) in [
            (Inbox::default(), asked, answered),
            (Inbox::of_replies(), answered, asked),
        ] {
            assert_eq!(feed(&mut inbox, &mine.encode(), 40), [Event::Data(mine)]);
            let events = feed(&mut inbox, &foreign.encode(), 40);
            assert_eq!(events, [Event::Frame(foreign, Vec::new())]);
        }
    }

    #[test]
    fn a_cut_frame_is_noticed() {
        let mut inbox = Inbox::default();
        assert!(!inbox.is_partial());
        feed(
            &mut inbox,
            &FrameHeader::request(Op::Info, 1).encode()[..5],
            5,
        );
        assert!(inbox.is_partial());
    }
}
