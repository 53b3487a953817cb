#![forbid(unsafe_code)]
//! The list of a region's data pages on Xen.
//!
//! The header page holds the first 960 grant references. The rest are in further pages, which the
//! peer may only read: each starts with the reference of the next (0 in the last), followed by
//! 1,023 references. The number of further pages follows from the region's length, never from the
//! contents of the pages.

use std::sync::atomic::Ordering;

use super::error::RegionError;
use super::header::{LIST, NEXT};
use crate::wire::layout::PAGE;
use crate::wire::shm::Region;

const ENTRY: usize = size_of::<u32>();
/// Entries in the header page.
const IN_HEADER: usize = (PAGE - LIST) / ENTRY;
/// Entries in a further page.
const IN_PAGE: usize = PAGE / ENTRY - 1;

/// Further pages that the list of `data` pages needs.
pub(crate) fn further_pages(data: usize) -> usize {
    data.saturating_sub(IN_HEADER).div_ceil(IN_PAGE)
}

/// Owner: writes the list of `data` into the header page and into `further` pages, whose own
/// references are `further_refs`.
///
/// # Panics
/// If `further` is not as long as [`further_pages`] says.
pub(crate) fn write(header: &Region, further: Option<&Region>, further_refs: &[u32], data: &[u32]) {
    assert_eq!(further_refs.len(), further_pages(data.len()));
    let put = |page: &Region, at: usize, value: u32| {
        page.u32_at(at).store(value, Ordering::Relaxed);
    };
    let (first, rest) = data.split_at(data.len().min(IN_HEADER));
    for (at, &reference) in first.iter().enumerate() {
        put(header, LIST + ENTRY * at, reference);
    }
    put(header, NEXT, further_refs.first().copied().unwrap_or(0));
    let Some(further) = further else { return };
    for (number, part) in rest.chunks(IN_PAGE).enumerate() {
        let page = further.part(PAGE * number, PAGE);
        put(&page, 0, further_refs.get(number + 1).copied().unwrap_or(0));
        for (at, &reference) in part.iter().enumerate() {
            put(&page, ENTRY * (at + 1), reference);
        }
    }
}

/// Peer: reads the list of a region of `pages` data pages, each entry once, and checks it.
/// `map` maps one further page by its reference.
///
/// # Errors
/// [`RegionError::List`], and those of `map`.
pub(crate) fn read<E: From<RegionError>>(
    header: &Region,
    header_ref: u32,
    pages: usize,
    mut map: impl FnMut(u32) -> Result<Region, E>,
) -> Result<Vec<u32>, E> {
    let get = |page: &Region, at: usize| page.u32_at(at).load(Ordering::Relaxed);
    let mut data = Vec::with_capacity(pages);
    let mut others = vec![header_ref];
    data.extend((0..pages.min(IN_HEADER)).map(|at| get(header, LIST + ENTRY * at)));
    let mut next = get(header, NEXT);
    while data.len() < pages {
        check(next, &others)?;
        others.push(next);
        let page = map(next)?;
        next = get(&page, 0);
        let count = (pages - data.len()).min(IN_PAGE);
        data.extend((0..count).map(|at| get(&page, ENTRY * (at + 1))));
    }
    check_all(&data, &others)?;
    Ok(data)
}

/// Checks that a further page differs from all before it, so that the list cannot form a loop.
fn check(next: u32, others: &[u32]) -> Result<(), RegionError> {
    let problem = match next {
        0 => "ends the list too early",
        _ if others.contains(&next) => "stands for two pages",
        _ => return Ok(()),
    };
    Err(RegionError::List {
        reference: next,
        problem,
    })
}

/// Refuses a page that is listed twice.
fn check_all(data: &[u32], others: &[u32]) -> Result<(), RegionError> {
    let mut sorted = [data, others].concat();
    sorted.sort_unstable();
    let wrong = |reference, problem| Err(RegionError::List { reference, problem });
    if sorted.first() == Some(&0) {
        return wrong(0, "is no page");
    }
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => wrong(pair[0], "stands for two pages"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::shm::test_region;

    /// A list of `pages` references from 1000 on, further pages from 100 on, header 7.
    fn list(pages: u32) -> (Region, Region) {
        let data: Vec<u32> = (1000..1000 + pages).collect();
        let count = further_pages(data.len());
        let (header, further) = (test_region(1), test_region(count.max(1)));
        let refs: Vec<u32> = (100..).take(count).collect();
        write(&header, (count > 0).then_some(&further), &refs, &data);
        (header, further)
    }

    fn read_back(lists: &(Region, Region), pages: usize) -> Result<Vec<u32>, RegionError> {
        read(&lists.0, 7, pages, |reference| {
            let number = reference as usize - 100;
            Ok(lists.1.part(PAGE * number, PAGE))
        })
    }

    #[test]
    fn lists_of_every_shape_come_back() {
        for pages in [1, 2, 959, 960, 961, 960 + 1023, 960 + 1024, 16_384] {
            let lists = list(pages);
            let expected: Vec<u32> = (1000..1000 + pages).collect();
            assert_eq!(read_back(&lists, pages as usize), Ok(expected), "{pages}");
            // A shorter region over the same memory.
            let shorter = read_back(&lists, pages as usize / 2).unwrap();
            assert_eq!(shorter.len(), pages as usize / 2);
        }
        assert_eq!(
            [0, 960, 961, 1983, 1984].map(further_pages),
            [0, 0, 1, 1, 2]
        );
    }

    #[test]
    fn hostile_lists_are_refused() {
        let lists = list(3000);
        let refused = |page: &Region, at: usize, value: u32, why: &str| {
            let good = page.u32_at(at).swap(value, Ordering::Relaxed);
            match read_back(&lists, 3000) {
                Err(RegionError::List { problem, .. }) => {
                    assert!(problem.contains(why), "{problem}")
                }
                other => panic!("accepted: {:?}", other.map(|list| list.len())),
            }
            page.u32_at(at).store(good, Ordering::Relaxed);
        };
        let (header, further) = &lists;
        refused(header, LIST, 0, "no page");
        refused(header, LIST, 1001, "two pages");
        refused(header, LIST, 7, "two pages");
        refused(header, LIST, 100, "two pages");
        refused(header, NEXT, 0, "too early");
        refused(header, NEXT, 7, "two pages");
        // A circle.
        refused(further, 0, 100, "two pages");
        refused(further, 8, 3999, "two pages");
        assert!(read_back(&lists, 3000).is_ok());
    }
}
