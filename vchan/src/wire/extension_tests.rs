//! Tests of offers: those accepted and those refused.

use super::*;
use crate::wire::layout::{Format, ORDER_MAX_LOCAL, RingSizes};

const NONCE: Nonce = *b"0123456789abcdef";

fn large() -> Orders {
    let sizes = RingSizes {
        server_to_client: 2 << 20,
        client_to_server: 1 << 20,
    };
    Orders::choose_for(Format::Extended, ORDER_MAX_EXTENDED, sizes).unwrap()
}

// Their references would not fit the page: a client over Xen must not even look for them.
#[test]
fn rings_that_only_local_memory_allows() {
    let sizes = RingSizes::from(8 << 20);
    let orders = Orders::choose_for(Format::Extended, ORDER_MAX_LOCAL, sizes).unwrap();
    let (offer, classic) = (Header::offer(orders, NONCE), orders.classic());
    let (acceptance, taken) = offer.check(classic, &NONCE, ORDER_MAX_LOCAL).unwrap();
    assert_eq!((taken, acceptance.orders(taken)), (orders, orders));
    assert!(matches!(
        offer.check(classic, &NONCE, ORDER_MAX_EXTENDED),
        Err(ExtensionError::Orders { .. })
    ));
}

#[test]
fn records_come_back_as_they_were() {
    let header = Header::offer(large(), NONCE);
    assert_eq!(header.extra_grants, 256);
    assert_eq!(Header::decode(&header.encode()), Ok(header));
    let (acceptance, orders) = header
        .check(large().classic(), &NONCE, ORDER_MAX_EXTENDED)
        .unwrap();
    assert_eq!(orders, large());
    assert_eq!(Acceptance::decode(&acceptance.encode()), acceptance);
    assert_eq!(acceptance.check(&header), Ok(Some(acceptance)));
}

#[test]
fn words_are_on_lines_of_their_own_and_in_the_page() {
    use super::offset::*;
    let mut words = [
        LEFT_PROD,
        LEFT_CONS,
        LEFT_READER_WAIT,
        LEFT_WRITER_WAIT,
        RIGHT_PROD,
        RIGHT_CONS,
        RIGHT_READER_WAIT,
        RIGHT_WRITER_WAIT,
        LEFT_ENDED,
        RIGHT_ENDED,
    ];
    words.sort_unstable();
    assert!(ACCEPTANCE + 128 <= words[0]);
    for pair in words.windows(2) {
        assert_eq!(pair[1] - pair[0], 128);
    }
    assert!(words[9] + 128 <= EXTRA_GRANTS);
}

#[test]
fn offers_that_are_refused() {
    let good = Header::offer(large(), NONCE);
    let classic = large().classic();
    let check = |header: Header| {
        header
            .check(classic, &NONCE, ORDER_MAX_EXTENDED)
            .unwrap_err()
    };
    let other = Header { version: 0, ..good };
    assert!(matches!(check(other), ExtensionError::Version { .. }));
    assert_eq!(
        good.check(classic, &[0; NONCE_BYTES], ORDER_MAX_EXTENDED),
        Err(ExtensionError::Nonce)
    );
    for (left_order, right_order) in [(0, 21), (20, 22), (0xFFFF, 21), (19, 21), (20, 19)] {
        let header = Header {
            left_order,
            right_order,
            ..good
        };
        let error = check(header);
        assert!(matches!(error, ExtensionError::Orders { .. }), "{error}");
    }
    for extra_grants in [0, 255, 257, 512, u16::MAX] {
        let header = Header {
            extra_grants,
            ..good
        };
        let error = check(header);
        assert!(
            matches!(error, ExtensionError::ExtraGrants { needed: 256, .. }),
            "{error}"
        );
    }
    let mut bytes = good.encode();
    bytes[3] ^= 1;
    assert!(matches!(
        Header::decode(&bytes),
        Err(ExtensionError::Magic(_))
    ));
}

#[test]
fn a_newer_server_is_met_at_what_both_know() {
    let newer = Header {
        version: 7,
        features: u32::MAX,
        ..Header::offer(large(), NONCE)
    };
    let (acceptance, _) = newer
        .check(large().classic(), &NONCE, ORDER_MAX_EXTENDED)
        .unwrap();
    assert_eq!(
        (acceptance.version, acceptance.features),
        (VERSION, feature::ALL)
    );
    let small = Header {
        features: 0,
        ..newer
    };
    let (acceptance, orders) = small
        .check(large().classic(), &NONCE, ORDER_MAX_EXTENDED)
        .unwrap();
    assert_eq!(acceptance.orders(orders), large().classic());
}

#[test]
fn answers_that_are_refused() {
    let offer = Header::offer(large(), NONCE);
    let good = Acceptance {
        version: 1,
        features: 0,
        nonce: NONCE,
    };
    assert_eq!(good.check(&offer), Ok(Some(good)));
    let nothing = Acceptance { version: 0, ..good };
    assert_eq!(nothing.check(&offer), Ok(None));
    let newer = Acceptance { version: 2, ..good };
    assert!(matches!(
        newer.check(&offer),
        Err(ExtensionError::Version { found: 2, .. })
    ));
    let more = Acceptance {
        features: 2,
        ..good
    };
    assert!(matches!(
        more.check(&offer),
        Err(ExtensionError::Features { found: 2, .. })
    ));
    let other = Acceptance {
        nonce: [1; NONCE_BYTES],
        ..good
    };
    assert_eq!(other.check(&offer), Err(ExtensionError::Nonce));
}
