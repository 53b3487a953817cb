//! Honest sides, with events in any order and portions.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use proptest::prelude::*;

use super::pair::{Fate, Pair, answer};
use super::terms;
use crate::frame::Flags;
use crate::op::{Body, Fence, FenceReply, Goodbye, Info, InfoReply, Op, Ping, PingReply};
use crate::session::client::NotSent;
use crate::session::server::{End, Terms};
use crate::status::{ErrorCode, Status};

#[derive(Debug, Clone)]
enum Ask {
    Ping { len: usize, quiet: bool, fate: Fate },
    Fence,
    Add { elements: u64, fate: Fate },
}

fn asks() -> impl Strategy<Value = (u16, Ask)> {
    let some = |most: u64| prop_oneof![3 => 0..=16u64, 2 => 0..=most];
    let fate = move |most| {
        prop_oneof![
            3 => Just(Fate::Done),
            1 => some(most).prop_map(Fate::Fails),
        ]
    };
    let given_up =
        move |most| prop_oneof![3 => fate(most), 1 => some(most).prop_map(Fate::GivenUp)];
    let fails = prop_oneof![3 => Just(Fate::Done), 1 => Just(Fate::Fails(0))];
    let ping = (0..=4096usize, any::<bool>(), fails).prop_map(|(len, quiet, fate)| Ask::Ping {
        len,
        quiet,
        fate,
    });
    let add = (prop_oneof![6 => 1..3000u64, 1 => 60_000..150_000u64])
        .prop_flat_map(move |n| (Just(n), given_up(8 * n)))
        .prop_map(|(elements, fate)| Ask::Add { elements, fate });
    (
        0..4u16,
        prop_oneof![3 => ping, 1 => Just(Ask::Fence), 3 => add],
    )
}

fn ping(len: usize) -> Ping {
    let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
    Ping {
        payload: crate::op::field::Bytes::new(&bytes).expect("short enough"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_as_it_should(
        asks in prop::collection::vec(asks(), 1..24),
        seed: u64,
        initial_credit in prop_oneof![1..64u32, 1..100_000u32],
        max_requests in 1..8u16,
    ) {
        let max_requests = NonZeroU16::new(max_requests).expect("from 1");
        let mut pair = Pair::open(Terms { initial_credit, max_requests, ..terms() }, seed);
        let mut sent: Vec<(u32, u16, Ask)> = Vec::new();
        for (lane, mut ask) in asks {
            if let Ask::Add { elements, .. } = &mut ask {
                // Each portion of credit takes a round trip.
                *elements = (*elements).min(50 * u64::from(initial_credit));
            }
            loop {
                let result = match ask.clone() {
                    Ask::Ping { len, quiet, fate } => {
                        let flags = if quiet { Flags::QUIET } else { Flags::NONE };
                        let shape = |header: crate::frame::FrameHeader| {
                            header.with_lane(lane).with_flags(flags)
                        };
                        pair.ask(ping(len), shape, Vec::new(), fate)
                    }
                    Ask::Fence => {
                        pair.ask(Fence {}, |header| header.with_lane(lane), Vec::new(), Fate::Done)
                    }
                    Ask::Add { elements, fate } => pair.add(lane, elements, fate),
                };
                match result {
                    Ok(id) => {
                        sent.push((id, lane, ask));
                        break;
                    }
                    Err(NotSent::TooMany(n)) => {
                        prop_assert_eq!(n, usize::from(max_requests.get()));
                        let under_way = pair.client.under_way().count();
                        pair.until("a request is over", |pair| {
                            pair.client.under_way().count() < under_way
                        });
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            // Nothing holds the guest back for quiet requests, but they are under way all the same.
            pair.until("quiet requests are over", |pair| {
                pair.client.outbox().is_empty() || pair.client.under_way().count() > 0
            });
        }
        pair.until("all are over", |pair| {
            pair.client.under_way().count() == 0 && pair.client.outbox().is_empty()
        });
        pair.settle();
        prop_assert!(!pair.server.is_busy());

        // Another fence reports what the last one did not.
        let last = pair.ask(Fence {}, |header| header, Vec::new(), Fate::Done).expect("room");
        pair.settle();
        let mut told = BTreeMap::new();
        let mut refused_told = 0;
        for call in pair.calls.values().filter(|call| call.header.op == Op::Fence) {
            let (status, body) = call.reply.as_ref().expect("answered");
            prop_assert_eq!(*status, Status::OK);
            let fence = FenceReply::decode(body).expect("a sound answer");
            prop_assert_eq!(fence.dropped, 0);
            for failure in fence.failures.as_slice() {
                prop_assert_eq!(failure.op, Op::Ping);
                if failure.status == ErrorCode::Busy.into() {
                    refused_told += 1;
                }
                prop_assert!(told.insert(failure.request_id, failure.status).is_none());
            }
        }
        prop_assert_eq!(pair.replies.last(), Some(&(last, false)));

        for (id, lane, ask) in &sent {
            let call = &pair.calls[id];
            let due = match ask {
                Ask::Ping { fate: Fate::Done, .. } | Ask::Fence => Status::OK,
                Ask::Ping { .. } => ErrorCode::QuotaMemory.into(),
                Ask::Add { elements, fate } => match *fate {
                    Fate::Fails(after) if after <= 8 * elements => ErrorCode::QuotaMemory.into(),
                    Fate::GivenUp(after) if after < 8 * elements => ErrorCode::Cancelled.into(),
                    _ => Status::OK,
                },
            };
            if let Ask::Ping { quiet: true, .. } = ask {
                prop_assert!(call.reply.is_none());
                let told = told.get(id).copied().unwrap_or(Status::OK);
                prop_assert!(told == due || told == ErrorCode::Busy.into(), "{} for {:?}", told, ask);
                continue;
            }
            let (status, body) = call.reply.as_ref().expect("answered");
            if matches!(ask, Ask::Add { fate: Fate::GivenUp(_), .. }) && status.is_ok() {
                // With all its credit it began the last frame before it checked whether to give up.
                prop_assert_eq!(&call.down, &answer(&call.up));
                continue;
            }
            prop_assert_eq!(*status, due, "{:?}", ask);
            match ask {
                Ask::Ping { len, fate: Fate::Done, .. } => {
                    let reply = PingReply::decode(body).expect("a sound answer");
                    prop_assert_eq!(reply.payload, ping(*len).payload);
                }
                Ask::Add { .. } if status.is_ok() => prop_assert_eq!(&call.down, &answer(&call.up)),
                Ask::Fence => {
                    // No earlier request of its lane is answered after it.
                    let at = pair.replies.iter().position(|(reply, _)| reply == id);
                    let late = pair.replies[at.expect("answered")..].iter().find(|(other, _)| {
                        other < id && pair.calls[other].header.lane == *lane
                    });
                    prop_assert_eq!(late, None);
                }
                _ => {}
            }
        }
        let quiet = |ask: &Ask| matches!(ask, Ask::Ping { quiet: true, .. });
        let failed = sent.iter().filter(|(_, _, ask)| {
            quiet(ask) && matches!(ask, Ask::Ping { fate: Fate::Fails(_), .. })
        });
        prop_assert!(told.len() <= failed.count() + refused_told);

        pair.ask(Goodbye {}, |header| header, Vec::new(), Fate::Done).expect("room");
        pair.settle();
        prop_assert_eq!(&pair.end, &Some(End::Goodbye));
        prop_assert_eq!(pair.client.under_way().count(), 0);
    }
}

#[test]
fn hello_agrees_on_what_both_have() {
    let mut pair = Pair::open(terms(), 1);
    let agreed = pair.client.agreed().expect("answered").clone();
    assert_eq!(agreed, super::hello_reply(terms()));
    assert_eq!(pair.server.client_name().as_deref(), Some("pair"));
    let id = pair
        .ask(Info {}, |header| header, Vec::new(), Fate::Done)
        .expect("room");
    pair.settle();
    let (status, body) = pair.calls[&id].reply.as_ref().expect("answered");
    assert_eq!(*status, Status::OK);
    assert_eq!(InfoReply::decode(body), Ok(super::info()));
}

#[test]
fn a_fence_waits_for_its_lane_and_no_other() {
    let mut pair = Pair::open(terms(), 2);
    let long = pair.add(0, 100, Fate::Done).expect("room");
    // All its data has arrived, and the device works.
    let started = |pair: &Pair| pair.client.outbox().is_empty();
    let fence = |pair: &mut Pair, lane| {
        pair.ask(
            Fence {},
            |header| header.with_lane(lane),
            Vec::new(),
            Fate::Done,
        )
        .expect("room")
    };
    let same = fence(&mut pair, 0);
    let other = fence(&mut pair, 1);
    pair.until("everything is sent", started);
    pair.until("the other lane's fence is answered", |pair| {
        pair.calls[&other].reply.is_some()
    });
    pair.settle();
    let order: Vec<u32> = pair.replies.iter().map(|(id, _)| *id).collect();
    let at = |id| {
        order
            .iter()
            .position(|other| *other == id)
            .expect("answered")
    };
    assert!(at(long) < at(same), "{order:?}");
    assert_eq!(
        pair.calls[&same].reply.as_ref().expect("answered").0,
        Status::OK
    );
}

#[test]
fn data_that_waits_for_credit_holds_up_no_other_request() {
    let mut pair = Pair::open(
        Terms {
            initial_credit: 100,
            ..terms()
        },
        3,
    );
    let big = pair.add(0, 10_000, Fate::Done).expect("room");
    let small = pair
        .ask(
            ping(10),
            |header| header.with_lane(1),
            Vec::new(),
            Fate::Done,
        )
        .expect("room");
    pair.until("the ping is answered", |pair| {
        pair.calls[&small].reply.is_some()
    });
    assert!(pair.client.is_under_way(big));
    pair.settle();
    assert_eq!(pair.calls[&big].down, answer(&pair.calls[&big].up));
}
