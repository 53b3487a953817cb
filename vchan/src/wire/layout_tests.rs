//! Tests of the control page's offsets, and of the choice and check of ring orders.

use super::*;

fn chosen(client_to_server: usize, server_to_client: usize) -> (u16, u16) {
    let orders = Orders::choose(RingSizes {
        server_to_client,
        client_to_server,
    })
    .unwrap();
    assert_eq!(
        Orders::check(orders.left, orders.right),
        Ok(orders),
        "own choice is refused"
    );
    (orders.left, orders.right)
}

#[test]
fn choice_follows_libxenvchan() {
    assert_eq!(chosen(0, 0), (10, 11));
    assert_eq!(chosen(1024, 2048), (10, 11));
    assert_eq!(chosen(1025, 1024), (11, 10));
    assert_eq!(chosen(2048, 2048), (11, 12));
    assert_eq!(chosen(1, 4096), (11, 12));
    assert_eq!(chosen(4097, 1), (13, 11));
    assert_eq!(chosen(2049, 2049), (12, 12));
    assert_eq!(chosen(65536, 65537), (16, 17));
    assert_eq!(chosen(1 << 20, 1), (20, 11));
    assert_eq!(
        Orders::choose(((1 << 20) + 1).into()),
        Err(RingSizeError {
            bytes: (1 << 20) + 1,
            most: 1 << 20
        })
    );
    let extended = |most, bytes: usize| Orders::choose_for(Format::Extended, most, bytes.into());
    for most in [ORDER_MAX_EXTENDED, ORDER_MAX_LOCAL] {
        let large = extended(most, (1 << 20) + 1).unwrap();
        assert_eq!((large.left, large.right), (21, 21));
        assert_eq!((large.classic().left, large.classic().right), (20, 20));
        assert!(extended(most, 1 << most).is_ok());
        assert!(extended(most, (1 << most) + 1).is_err());
        assert!(Orders::choose_for(Format::Classic, most, ((1 << 20) + 1).into()).is_err());
    }
}

// docs/threat-model.md, case 10.
#[test]
fn impossible_orders_are_refused() {
    for (left, right) in [
        (0, 12),
        (9, 11),
        (12, 21),
        (0xFFFF, 12),
        (10, 10),
        (11, 11),
        (10, 20),
        (20, 10),
    ] {
        assert!(
            Orders::check(left, right).is_err(),
            "({left}, {right}) was accepted"
        );
    }
    for (left, right) in [
        (10, 11),
        (11, 10),
        (11, 20),
        (20, 11),
        (20, 20),
        (12, 12),
        (10, 19),
    ] {
        assert!(
            Orders::check(left, right).is_ok(),
            "({left}, {right}) was refused"
        );
    }
}

#[test]
fn grants_fit_before_any_ring_in_the_page() {
    for left in ORDER_SMALL..=ORDER_MAX {
        for right in ORDER_SMALL..=ORDER_MAX {
            let Ok(orders) = Orders::check(left, right) else {
                continue;
            };
            let end = offset::GRANTS + 4 * orders.grant_count();
            assert!(end <= PAGE);
            for place in [orders.left_place(), orders.right_place()] {
                if let RingPlace::ControlPage { offset } = place {
                    assert!(end <= offset);
                }
            }
        }
    }
}

#[test]
fn no_order_beyond_the_largest_is_ever_taken() {
    let classic = Orders::check(ORDER_MAX, ORDER_MAX).unwrap();
    for order in [24, 63, 64, u16::MAX] {
        assert!(classic.extended(order, order, u16::MAX).is_err(), "{order}");
    }
    assert!(classic.extended(23, 23, u16::MAX).is_ok());
    let largest = RingSizes::from(usize::MAX);
    assert!(Orders::choose_for(Format::Extended, u16::MAX, largest).is_err());
}
