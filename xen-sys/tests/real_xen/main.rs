//! Both providers against a real Xen: `cargo xtask lab test` runs this program in dom0 and in a
//! PV guest. Most tests are loopbacks within one domain, whose number is in `XEN_SYS_DOMID` (0);
//! those of `two_domains` need a guest and dom0. Loopbacks crash a PVH guest in the lab (Linux 6.1
//! under emulated nested paging); no domain of vgpu maps its own grants.

mod between_guests;
mod death;
mod domains;
mod events;
mod grants;
mod support;
mod two_domains;

/// Makes `#[test]`s out of functions that take the granting and the mapping provider.
macro_rules! with_each_provider {
    ($($module:ident::$test:ident)*) => {
        with_each_provider! { @providers libraries Libraries Libraries; $($module::$test)* }
        with_each_provider! { @providers ioctls Ioctls Ioctls; $($module::$test)* }
        with_each_provider! {
            @providers libraries_grant_ioctls_map Libraries Ioctls; $($module::$test)*
        }
        with_each_provider! {
            @providers ioctls_grant_libraries_map Ioctls Libraries; $($module::$test)*
        }
    };
    (@providers $name:ident $granting:ident $mapping:ident; $($module:ident::$test:ident)*) => {
        mod $name {
            use xen_sys::Provider;

            $(
                #[test]
                #[ignore = "needs Xen: run by cargo xtask lab test"]
                fn $test() {
                    crate::$module::$test(Provider::$granting, Provider::$mapping);
                }
            )*
        }
    };
}

with_each_provider! {
    grants::pages_are_zeroed_and_shared_both_ways
    grants::many_pages_keep_their_order
    grants::a_read_only_mapping_is_read_only
    grants::a_read_only_grant_refuses_a_writable_mapping
    grants::unknown_references_are_refused
    grants::the_wrong_owner_is_refused
    grants::impossible_requests_are_refused_before_xen
    grants::more_than_the_limit_is_an_error_that_leaves_nothing
    grants::dropped_pages_are_free_again
    grants::children_inherit_no_mapping
    grants::the_mapping_outlives_its_device
    events::both_ends_reach_each_other
    events::a_delivered_port_waits_for_unmask
    events::nothing_pending_is_none
    events::a_taken_port_refuses_a_second_client
    events::notifying_a_closed_peer_succeeds
    events::unbound_ports_are_errors
    events::one_device_serves_many_ports
    events::the_descriptor_is_nonblocking_and_closed_on_exec
    events::a_restricted_device_binds_nothing_else
    death::dropping_the_mapping_notifies_the_owner
    death::dropping_the_grant_notifies_the_client
    death::a_notification_can_do_one_thing_only
    death::a_foreign_port_cannot_be_notified
    death::a_killed_client_is_noticed
    death::a_killed_owner_is_noticed
}
