//! The extension's offer and the answer to it.

use vchan::RingSizes;
use vchan::extension::{
    ACCEPTANCE_BYTES, Acceptance, HEADER_BYTES, Header, NONCE_BYTES, VERSION, feature,
};
use vchan::layout::{Format, ORDER_MAX_EXTENDED, ORDER_MAX_LOCAL, Orders};

use crate::input::Input;

/// A header and an answer as they may be in an extension page. The accepted features are a part of
/// those offered, and the rings have the pages that the offer lists.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (left, right) = (input.u8(), input.u8());
    let header: [u8; HEADER_BYTES] = input.array();
    let answer: [u8; ACCEPTANCE_BYTES] = input.array();
    let Ok(classic) = Orders::check(left.into(), right.into()) else {
        return;
    };
    let Ok(offer) = Header::decode(&header) else {
        return;
    };
    assert_eq!(Header::decode(&offer.encode()), Ok(offer));
    for most in [ORDER_MAX_EXTENDED, ORDER_MAX_LOCAL] {
        let Ok((acceptance, offered)) = offer.check(classic, &offer.nonce, most) else {
            continue;
        };
        assert!(offered.left() <= most && offered.right() <= most);
        assert!(acceptance.version >= 1 && acceptance.version <= VERSION.min(offer.version));
        assert_eq!(acceptance.features & !(offer.features & feature::ALL), 0);
        assert_eq!(offered.classic(), classic);
        let listed = usize::from(offer.extra_grants);
        assert_eq!(offered.grant_count(), classic.grant_count() + listed);
        let used = acceptance.orders(offered);
        assert!(used == offered || used == classic);
        // An acceptance made by a client is valid for its server.
        assert_eq!(acceptance.check(&offer), Ok(Some(acceptance)));
        assert!(
            offer.check(classic, &[0x5A; NONCE_BYTES], most).is_err() || offer.nonce[0] == 0x5A
        );
    }
    let answer = Acceptance::decode(&answer);
    assert_eq!(Acceptance::decode(&answer.encode()), answer);
    if let Ok(Some(taken)) = answer.check(&offer) {
        assert!(taken.version >= 1 && taken.version <= offer.version);
        assert!(taken.nonce == offer.nonce && taken.features & !offer.features == 0);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for bytes in [64 << 10, 1 << 20, 2 << 20, 8 << 20] {
        let most = ORDER_MAX_LOCAL;
        let orders = Orders::choose_for(Format::Extended, most, RingSizes::from(bytes))
            .expect("possible sizes");
        let offer = Header::offer(orders, *b"0123456789abcdef");
        let classic = orders.classic();
        let (answer, _) = offer
            .check(classic, &offer.nonce, most)
            .expect("an honest offer");
        let order = |order: u16| u8::try_from(order).expect("orders end at 23");
        let mut seed = vec![order(classic.left()), order(classic.right())];
        seed.extend(offer.encode());
        seed.extend(answer.encode());
        seeds.push(seed);
    }
    seeds
}
