//! Requests and connections that fail, and what is left afterwards.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use vgpu_protocol::status::{ErrorCode, Status};

use crate::client::Client;
use crate::error::{Cause, Retry};
use crate::options::Options;

use super::{Ground, at, check, fails, goodbye, works};

/// A lane that no mediator offers.
const NO_LANE: u16 = 4999;

pub(super) fn refused(ground: &Ground<'_>) -> Result<(), String> {
    let mut client = ground.connect()?;
    let requests: [fn(&mut Client) -> crate::Result<()>; 3] = [
        |client| client.info().map(drop),
        |client| client.ping(b"x").map(drop),
        |client| client.fence().map(drop),
    ];
    for request in requests {
        client.use_header_lane(NO_LANE);
        let error = fails("a lane that is not there", request(&mut client))?;
        client.use_header_lane(0);
        let range = Status::from(ErrorCode::Range);
        check(
            matches!(error.cause(), Cause::Refused { status, .. } if *status == range),
            || format!("on a lane that is not there: {error}"),
        )?;
        check(error.epoch() == Some(client.epoch()), || {
            format!("the error is of session {:x?}", error.epoch())
        })?;
        works(&mut client, "after a refused request")?;
    }
    goodbye(client)
}

pub(super) fn quiet_failures(ground: &Ground<'_>) -> Result<(), String> {
    let mut client = ground.connect()?;
    let mut wrong = Vec::new();
    for _round in 0..3 {
        client.ping_quiet(b"good").map_err(at("quiet ping"))?;
        client.use_header_lane(NO_LANE);
        let id = client.ping_quiet(b"bad");
        client.use_header_lane(0);
        wrong.push(id.map_err(at("quiet ping"))?);
    }
    client.ping(b"what is new?").map_err(at("ping"))?;
    check(client.quiet_requests_failed(), || {
        "the answer to a ping does not say that quiet requests have failed".to_owned()
    })?;
    let fence = client.fence().map_err(at("fence"))?;
    let failures = fence.failures.as_slice();
    let told: Vec<u32> = failures.iter().map(|at| at.request_id).collect();
    check(told == wrong && fence.dropped == 0, || {
        format!("requests {wrong:?} failed, the fence told {told:?}")
    })?;
    let fence = client.fence().map_err(at("a second fence"))?;
    check(fence.failures.as_slice().is_empty(), || {
        "the second fence told the same again".to_owned()
    })?;
    check(!client.quiet_requests_failed(), || {
        "failures that a fence has told are still said to be there".to_owned()
    })?;
    works(&mut client, "after quiet failures")?;
    // One that nobody has asked about, the end tells.
    client.use_header_lane(NO_LANE);
    let id = client.ping_quiet(b"bad");
    client.use_header_lane(0);
    let id = id.map_err(at("quiet ping"))?;
    let error = fails("a goodbye behind a failure", client.goodbye())?;
    let told: Vec<u32> = error.failures().iter().map(|at| at.request_id).collect();
    check(told == [id], || {
        format!("request {id} failed, the goodbye told {told:?}: {error}")
    })
}

pub(super) fn arguments(client: &mut Client) -> Result<(), String> {
    let outcomes = [
        client.ping(&[0; 4097]).map(|_| ()),
        client
            .vector_add(&[1.0; 2], &[1.0; 3], &mut [0.0; 2])
            .map(|_| ()),
        client
            .vector_add(&[1.0; 2], &[1.0; 2], &mut [0.0; 3])
            .map(|_| ()),
    ];
    for outcome in outcomes {
        let error = fails("wrong arguments", outcome)?;
        check(
            matches!(error.cause(), Cause::Input(_)) && error.retry() == Retry::No,
            || format!("wrong arguments: {error}"),
        )?;
    }
    works(client, "after wrong arguments")?;
    Ok(())
}

pub(super) fn interrupts(ground: &Ground<'_>) -> Result<(), String> {
    let options = Options {
        interrupt: Some(Arc::new(AtomicBool::new(true))),
        ..ground.options.clone()
    };
    let error = fails("connect", ground.connect_with(&options))?;
    check(matches!(error.cause(), Cause::Interrupted), || {
        format!("interrupted while connecting: {error}")
    })?;
    let mut client = ground.connect()?;
    works(&mut client, "after an interrupted attempt")?;
    goodbye(client)
}

pub(super) fn deadlines(ground: &Ground<'_>) -> Result<(), String> {
    let options = Options {
        connect_timeout: Duration::from_nanos(1),
        ..ground.options.clone()
    };
    let error = fails("connect in no time", ground.connect_with(&options))?;
    check(error.retry() == Retry::NewSession, || {
        format!("no time to connect: {error}")
    })?;
    let mut client = ground.connect()?;
    works(&mut client, "after an attempt without time")?;
    goodbye(client)
}
