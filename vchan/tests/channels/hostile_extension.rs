//! Lies in the handshake of the extension, and in its words afterwards.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use vchan::error::ExtensionError;
use vchan::extension::{Acceptance, feature, offset};
use vchan::local::{connect_on, serve_on};
use vchan::notify::{ARMED, armed_for};
use vchan::{Channel, Error, Format, PeerError};
use vchan_testing::peer::{LyingPeer, Offer, Page, send_raw};

const RING: u32 = 4096;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn short() -> Instant {
    Instant::now() + Duration::from_millis(30)
}

/// A server, and the client that answers its offer as scripted.
fn server(
    answer: impl FnOnce(&mut Acceptance) + Send + 'static,
) -> (vchan::Result<Channel>, LyingPeer) {
    let (one, other) = UnixStream::pair().unwrap();
    let liar = thread::spawn(move || {
        LyingPeer::connect_answering(other, soon(), |header, page| {
            let mut acceptance = Acceptance {
                version: header.version,
                features: header.features,
                nonce: header.nonce,
            };
            answer(&mut acceptance);
            page.set_bytes(offset::ACCEPTANCE, &acceptance.encode());
        })
        .unwrap()
    });
    let victim = serve_on(one, RING as usize, soon());
    (victim, liar.join().unwrap())
}

fn refused(outcome: vchan::Result<Channel>) -> ExtensionError {
    match outcome {
        Err(Error::Peer(PeerError::Extension(error))) => error,
        other => panic!("not refused for the extension: {other:?}"),
    }
}

#[test]
fn a_client_that_accepts_what_was_not_offered() {
    let (victim, _liar) = server(|answer| answer.version = 2);
    assert!(matches!(
        refused(victim),
        ExtensionError::Version {
            found: 2,
            newest: 1
        }
    ));
    let (victim, _liar) = server(|answer| answer.features |= 1 << 31);
    assert!(matches!(refused(victim), ExtensionError::Features { .. }));
    let (victim, _liar) = server(|answer| answer.nonce[15] ^= 1);
    assert_eq!(refused(victim), ExtensionError::Nonce);
}

#[test]
fn a_client_that_accepts_less_or_nothing() {
    let (victim, _liar) = server(|answer| answer.features = 0);
    assert_eq!(victim.unwrap().format(), Format::Extended);
    let (victim, _liar) = server(|answer| answer.version = 0);
    assert_eq!(victim.unwrap().format(), Format::Classic);
}

#[test]
fn an_answer_changed_later_changes_nothing() {
    let (victim, liar) = server(|_| ());
    let (mut victim, page) = (victim.unwrap(), liar.extension.as_ref().unwrap());
    page.set_bytes(offset::HEADER, &[0xFF; 256]);
    assert_eq!(victim.format(), Format::Extended);
    assert_eq!(
        victim.try_write(&[0; 2 * RING as usize]).unwrap(),
        RING as usize
    );
    assert_eq!(page.u32(offset::RIGHT_PROD), RING);
}

/// A client's result for an offer that `lie` has falsified.
fn offered(lie: impl FnOnce(&mut Offer)) -> vchan::Result<Channel> {
    let mut offer = Offer::extended((64 << 10).into()).unwrap();
    lie(&mut offer);
    let (near, far) = UnixStream::pair().unwrap();
    let fds = [
        offer.memory.as_fd(),
        offer.to_server.as_fd(),
        offer.from_server.as_fd(),
    ];
    send_raw(&far, &offer.hello, &fds, soon()).unwrap();
    connect_on(near, soon())
}

fn page(offer: &Offer) -> &Page {
    offer.extension.as_ref().unwrap()
}

#[test]
fn a_server_whose_offer_is_none() {
    assert_eq!(offered(|_| ()).unwrap().format(), Format::Extended);
    let error = refused(offered(|offer| page(offer).set_u8(0, b'V')));
    assert!(matches!(error, ExtensionError::Magic(_)));
    let error = refused(offered(|offer| page(offer).set_u16(8, 0)));
    assert!(matches!(error, ExtensionError::Version { found: 0, .. }));
    let error = refused(offered(|offer| {
        page(offer).set_u8(24, page(offer).u8(24) ^ 1)
    }));
    assert_eq!(error, ExtensionError::Nonce);
    for order in [0, 11, 15, 17, 21, 22, 0xFFFF] {
        let error = refused(offered(|offer| page(offer).set_u16(10, order)));
        assert!(matches!(error, ExtensionError::Orders { left, .. } if left == order));
    }
    for count in [1, 512, 0xFFFF] {
        let error = refused(offered(|offer| page(offer).set_u16(14, count)));
        assert!(
            matches!(error, ExtensionError::ExtraGrants { found, needed: 0 } if found == count)
        );
    }
    // A server of a later version: used with the features that this one knows.
    let newer = offered(|offer| {
        page(offer).set_u16(8, 9);
        page(offer).set_u32(16, u32::MAX);
    });
    assert_eq!(newer.unwrap().format(), Format::Extended);
}

#[test]
fn flags_and_nonce_of_the_hello_must_agree() {
    for lie in [
        |hello: &mut [u8]| hello[10] = 0,
        |hello: &mut [u8]| hello[10] = 2,
        |hello: &mut [u8]| hello[11] = 1,
    ] {
        let outcome = offered(|offer| lie(&mut offer.hello));
        assert!(
            matches!(outcome, Err(Error::Peer(PeerError::Rendezvous(_)))),
            "{outcome:?}"
        );
    }
}

#[test]
fn indexes_in_the_extension_page_are_checked() {
    for lie in [RING + 1, u32::MAX, 1 << 31] {
        let (victim, liar) = server(|_| ());
        let (mut victim, page) = (victim.unwrap(), liar.extension.as_ref().unwrap());
        page.set_u32(offset::LEFT_PROD, lie);
        for _ in 0..2 {
            match victim.try_read(&mut [0; 8]) {
                Err(Error::Peer(PeerError::Producer { found, .. })) => assert_eq!(found, lie),
                other => panic!("{lie:#x} was accepted: {other:?}"),
            }
        }
        let (victim, liar) = server(|_| ());
        let (mut victim, page) = (victim.unwrap(), liar.extension.as_ref().unwrap());
        page.set_u32(offset::RIGHT_CONS, lie);
        match victim.drain(soon()) {
            Err(Error::Peer(PeerError::Consumer { found, .. })) => assert_eq!(found, lie),
            other => panic!("{lie:#x} was accepted: {other:?}"),
        }
    }
}

#[test]
fn the_classic_words_mean_nothing_once_the_extension_is_in_use() {
    let (victim, liar) = server(|_| ());
    let mut victim = victim.unwrap();
    liar.page
        .set_u32(vchan::layout::offset::LEFT_PROD, u32::MAX);
    liar.page
        .set_u32(vchan::layout::offset::RIGHT_CONS, u32::MAX);
    victim.write_all(b"goes on", soon()).unwrap();
    assert!(matches!(
        victim.read(&mut [0], short()),
        Err(Error::TimedOut(_))
    ));
}

#[test]
fn wait_words_stuck_or_stolen() {
    // An index far ahead, one far behind, all bits: at most one ring per step.
    for word in [ARMED, 1, armed_for(1), armed_for(u32::MAX), u32::MAX, 5] {
        let (victim, liar) = server(|_| ());
        let (mut victim, page) = (victim.unwrap(), liar.extension.as_ref().unwrap());
        for n in 1..=100 {
            page.set_u32(offset::LEFT_WRITER_WAIT, word);
            page.set_u32(offset::LEFT_PROD, n);
            assert_eq!(victim.read(&mut [0; 8], soon()).unwrap(), 1);
        }
        // Without the flag it asks for nothing.
        let most = if word & ARMED == 0 { 1 } else { 101 };
        assert!(victim.stats().events_sent <= most, "{:?}", victim.stats());
    }
    // Cleared for a sleeper: the wake-up is lost, the deadline is not.
    let (victim, liar) = server(|_| ());
    let (mut victim, page) = (victim.unwrap(), liar.extension.clone().unwrap());
    let thief = thread::spawn(move || {
        let until = short();
        while Instant::now() < until {
            page.set_u32(offset::LEFT_READER_WAIT, 0);
            page.set_u32(offset::RIGHT_WRITER_WAIT, 0);
        }
    });
    assert!(matches!(
        victim.read(&mut [0], short()),
        Err(Error::TimedOut(_))
    ));
    victim.write_all(&[0; RING as usize], soon()).unwrap();
    assert!(matches!(
        victim.write_all(b"x", short()),
        Err(Error::TimedOut(_))
    ));
    thief.join().unwrap();
    drop(liar);
}

#[test]
fn a_sleeper_says_at_which_index_it_wants_to_wake() {
    let (victim, liar) = server(|answer| assert_eq!(answer.features, feature::ALL));
    let (mut victim, page) = (victim.unwrap(), liar.extension.as_ref().unwrap());
    victim.set_spin(Duration::ZERO);
    assert!(victim.read_exact(&mut [0; 100], short()).is_err());
    assert_eq!(page.u32(offset::LEFT_READER_WAIT), armed_for(100));
    // More than fits: half the ring, since a writer that finds no room has filled that much.
    assert!(
        victim
            .read_exact(&mut [0; 2 * RING as usize], short())
            .is_err()
    );
    assert_eq!(page.u32(offset::LEFT_READER_WAIT), armed_for(RING / 2));
    victim.write_all(&[0; RING as usize], soon()).unwrap();
    assert!(victim.write_all(&[0; 10], short()).is_err());
    assert_eq!(page.u32(offset::RIGHT_WRITER_WAIT), armed_for(10));
    assert!(victim.write_all(&[0; RING as usize], short()).is_err());
    assert_eq!(page.u32(offset::RIGHT_WRITER_WAIT), armed_for(RING / 4));
    assert!(victim.drain(short()).is_err());
    assert_eq!(page.u32(offset::RIGHT_WRITER_WAIT), armed_for(RING));
}
