//! Shared regions: the ticket, and the list of pages behind it.

use vchan::Error;
use vchan::region::{Access, Carrier, RegionError, TICKET_BYTES, Ticket};
use vchan_testing::peer::read_list;

use crate::input::Input;

/// The most pages of a region here: a list of three further pages.
const MOST_PAGES: usize = 4000;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    ticket(input.take(TICKET_BYTES));
    let pages = usize::from(input.u16()) % MOST_PAGES + 1;
    let mut lies = Vec::new();
    while !input.is_empty() {
        let (page, entry) = (input.u8().into(), input.u16().into());
        lies.push((page, entry, input.u16().into()));
    }
    match read_list(pages, &lies) {
        Ok(list) => {
            assert_eq!(list.len(), pages, "as long as the ticket says");
            let mut sorted = list;
            sorted.extend([0, 7]);
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), pages + 2, "no page twice, no header, no 0");
        }
        Err(Error::Region(RegionError::List { .. } | RegionError::Stale)) => {}
        Err(error) => panic!("a false list led to {error:?}"),
    }
}

fn ticket(bytes: &[u8]) {
    match Ticket::decode(bytes) {
        Ok(ticket) => assert_eq!(ticket.encode(), bytes, "nothing in a ticket is ignored"),
        Err(RegionError::Ticket(_)) => {}
        Err(error) => panic!("a false ticket led to {error:?}"),
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let ticket = |access, carrier| {
        Ticket {
            id: 1,
            nonce: [9; 16],
            length: 5000,
            access,
            carrier,
        }
        .encode()
    };
    let seed = |ticket: [u8; TICKET_BYTES], pages: u16, lies: &[u8]| {
        [&ticket[..], &(pages - 1).to_le_bytes(), lies].concat()
    };
    let grants = ticket(Access::PeerReads, Carrier::Grants { header: 7 });
    let both = ticket(Access::Both, Carrier::Descriptors);
    let write = ticket(Access::PeerWrites, Carrier::Descriptors);
    vec![
        seed(grants, 2, &[]),
        seed(both, 960, &[0, 64, 0, 0xE9, 3]),
        // The next page is the first one again, or none.
        seed(write, 3000, &[1, 0, 0, 100, 0]),
        seed(write, 3000, &[0, 12, 0, 0, 0]),
        seed(grants, 2000, &[0, 12, 0, 101, 0, 2, 0, 0, 100, 0]),
    ]
}
