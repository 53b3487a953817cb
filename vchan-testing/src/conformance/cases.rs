//! The table of cases.

use super::{Case, close, stream};
use vchan::layout::{RingSizes, Role};

/// Both rings in the control page.
const IN_PAGE: RingSizes = RingSizes {
    server_to_client: 2 << 10,
    client_to_server: 1 << 10,
};
/// One ring in the page, one in pages of its own.
const UNEQUAL: RingSizes = RingSizes {
    server_to_client: 128 << 10,
    client_to_server: 2 << 10,
};
const MIDDLE: RingSizes = RingSizes {
    server_to_client: 64 << 10,
    client_to_server: 64 << 10,
};
const LARGE: RingSizes = RingSizes {
    server_to_client: 1 << 20,
    client_to_server: 1 << 20,
};

pub(super) fn all() -> Vec<Case> {
    let case = |name, rings, server, client| Case {
        name,
        rings,
        first_index: 0,
        dies: None,
        server,
        client,
    };
    vec![
        case(
            "echo_every_size_in_page",
            IN_PAGE,
            stream::echo,
            stream::every_size,
        ),
        case(
            "echo_every_size_unequal",
            UNEQUAL,
            stream::echo,
            stream::every_size,
        ),
        case("echo_edge_sizes", MIDDLE, stream::echo, stream::edge_sizes),
        case(
            "echo_edge_sizes_large",
            LARGE,
            stream::echo,
            stream::edge_sizes,
        ),
        Case {
            first_index: u32::MAX - 5000,
            ..case(
                "indexes_wrap_in_page",
                IN_PAGE,
                stream::both_ways,
                stream::both_ways,
            )
        },
        Case {
            first_index: u32::MAX - 100_000,
            ..case("indexes_wrap", MIDDLE, stream::both_ways, stream::both_ways)
        },
        case(
            "both_ways_unequal",
            UNEQUAL,
            stream::both_ways,
            stream::both_ways,
        ),
        case(
            "both_ways_large",
            LARGE,
            stream::both_ways,
            stream::both_ways,
        ),
        case(
            "both_ways_one_thread",
            MIDDLE,
            stream::both_ways_polling,
            stream::both_ways_polling,
        ),
        case(
            "would_block",
            MIDDLE,
            stream::answer_when_full,
            stream::would_block,
        ),
        case("deadlines", IN_PAGE, stream::answer_late, stream::deadlines),
        case("idle_sleeps", MIDDLE, stream::echo, stream::idle),
        case(
            "server_drops_with_data",
            MIDDLE,
            close::write_and_drop,
            close::read_to_end,
        ),
        case(
            "client_drops_with_data",
            MIDDLE,
            close::read_to_end,
            close::write_and_drop,
        ),
        case(
            "server_drops_in_page",
            IN_PAGE,
            close::write_and_drop,
            close::read_to_end,
        ),
        case(
            "server_closes_slow_reader",
            MIDDLE,
            close::write_and_close,
            close::read_slowly,
        ),
        case(
            "client_closes_slow_reader",
            IN_PAGE,
            close::read_slowly,
            close::write_and_close,
        ),
        case(
            "both_close",
            MIDDLE,
            close::write_some_and_close,
            close::write_some_and_close,
        ),
        case(
            "server_leaves_blocked_writer",
            MIDDLE,
            close::leave_unread,
            close::blocked_writer,
        ),
        case(
            "client_leaves_blocked_writer",
            MIDDLE,
            close::blocked_writer,
            close::leave_unread,
        ),
        case(
            "close_wakes_other_half",
            MIDDLE,
            close::close_other_half,
            close::expect_only_end,
        ),
        Case {
            dies: Some(Role::Server),
            ..case("server_killed", MIDDLE, close::die_writing, close::survive)
        },
        Case {
            dies: Some(Role::Client),
            ..case("client_killed", MIDDLE, close::survive, close::die_writing)
        },
    ]
}
