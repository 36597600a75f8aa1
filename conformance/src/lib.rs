//! One behaviour suite for every engine of RTP Manager.
//!
//! A behaviour is a function that takes a [`Harness`], uses the public API of `rtp-mgr` as a program
//! would, and panics where the API does not do what it promises. The same functions run
//!
//! - as tests of the embedded engine: `cargo test -p conformance` (`tests/user.rs`),
//! - as a program, where there is no cargo: `conformance --engine kernel --ktap`.
//!
//! The program does two more things, which take both engines or longer: `conformance compare` sends the same
//! traffic through both and compares what becomes of every packet, `conformance soak` loads streams while
//! their readers stall and die.
//!
//! | module | what lives there |
//! |---|---|
//! | [`suite`] | the list of behaviours, running them |
//! | [`harness`] | which engine, what it and the machine can do, opening streams |
//! | [`program`] | the program: runner and the processes that behaviours start |
//! | `behaviours` | the behaviours |
//! | `compare`, `soak` | `conformance compare`, `conformance soak` |
//! | `wire`, `heard` | packets sent, packets read |
//! | `child`, `process` | reader and owner processes, what /proc tells about a process |
//! | `wait`, `dice` | deadlines, repeatable randomness |
//!
//! Nothing waits for a time to pass where it can wait for something to happen. Where the time is the
//! behaviour (a gap's deadline, pacing), only the bound that holds on a busy machine is asserted.

#![deny(missing_docs)]

mod behaviours;
mod child;
mod compare;
mod dice;
pub mod harness;
mod heard;
mod process;
pub mod program;
mod raw;
mod soak;
pub mod suite;
mod wait;
mod wire;

pub use harness::{Harness, Need, NotRun};
pub use suite::Behaviour;

/// Names every behaviour, by module, to the macro `$use`.
#[macro_export]
macro_rules! behaviours {
    ($use:ident) => {
        $use! {
            arrival {
                every_packet_is_delivered_once_in_order_of_arrival
                header_fields_and_payload_are_what_was_sent
                many_lengths_and_slot_sizes
                loss_is_a_discontinuity_with_its_count
                a_second_copy_is_counted_and_not_delivered
                late_packets_are_delivered_in_order_of_arrival
                ssrc_0_is_a_source
                ssrc_payload_type_and_address_filter
                arrival_times_are_tai
                ipv6
                positions_wrap
                a_full_source_table_loses_no_packets
                addresses_ports_and_jitter_of_a_source
            }
            ordered {
                loss_duplication_and_reordering_against_an_oracle
                a_gap_is_published_at_its_deadline_though_nothing_more_arrives
                a_late_packet_is_counted_and_not_delivered
                a_second_copy_is_counted_and_not_delivered
                an_outage_wider_than_the_window_is_one_discontinuity
                a_restart_begins_an_epoch
                a_stray_packet_is_no_restart
                one_source_is_followed_and_others_are_filtered
                another_source_takes_over_after_silence
                another_source_takes_over_at_once_after_bye_on_the_port_above
                another_source_takes_over_at_once_after_bye_on_the_same_port
                a_source_that_goes_on_after_its_bye_stays_followed
                ssrc_0_is_followed
                reordering_time_changes_while_running
                a_stalled_engine_gives_up_nothing_that_came_in_time
                positions_wrap
            }
            legs {
                the_first_copy_wins_and_the_other_is_counted
                nothing_is_lost_while_either_leg_has_it
                what_one_leg_alone_brings_is_marked
                another_source_takes_over_on_both_legs
                failover_in_both_directions_repeatedly
                a_leg_comes_back_after_a_long_outage
                legs_10_ms_apart_at_130000_packets_per_second
                a_restart_heard_on_both_legs_is_one
                a_leg_that_never_speaks_costs_nothing
            }
            overflow {
                a_full_ring_drops_the_newest_and_marks_the_place
                a_full_ring_drops_the_newest_and_marks_the_place_in_order
                what_is_borrowed_is_never_overwritten
                a_reader_that_leaves_makes_room
            }
            readers {
                every_reader_hears_every_packet
                a_reader_begins_at_the_present_end
                a_lossy_reader_learns_exactly_how_many_it_missed
                a_lossy_reader_under_load_accounts_for_every_position
                sixteen_readers_and_no_more
                a_batch_not_iterated_is_released
            }
            attached {
                readers_have_cursors_and_loss_counts_of_their_own
                a_reader_in_the_owners_process_attaches_too
                a_stopped_reader_holds_nobody_up
                a_reliable_reader_that_stalls_is_demoted
                reliable_is_refused_unless_allowed
                a_reader_that_scribbles_harms_nobody
                the_ring_cannot_be_written_or_shrunk
                a_reader_learns_that_the_stream_has_stopped
                a_reader_learns_that_the_owner_has_died
                an_owner_that_is_stopped_keeps_nobody_waiting
                a_name_belongs_to_one_stream
                streams_are_listed_and_their_figures_shown
            }
            alone {
                killed_readers_leak_nothing
                readers_that_come_and_go_leak_nothing
                streams_that_come_and_go_leak_nothing
                fifty_streams_share_one_thread
                multicast_within_the_machine
            }
            books {
                balance_at_every_snapshot_in_order_of_arrival
                balance_at_every_snapshot_of_an_ordered_stream
                balance_at_every_snapshot_of_a_transmit_stream
                figures_are_final_after_stop
            }
            offload {
                figures_and_order_are_the_same_with_gro_on_and_off
                ordered_figures_are_the_same_with_gro_on_and_off
                exact_times_turn_gro_off
                packets_on_the_wire_are_the_same_with_gso_on_and_off
            }
            many {
                a_thousand_sources_of_fifty_packets
                streams_of_one_context_do_not_mix
            }
            waiting {
                read_waits_no_longer_than_asked
                a_packet_wakes_a_waiting_reader
                the_descriptor_tells_by_level
                the_descriptor_tells_by_edge
                a_batch_waits_for_its_threshold
                a_batch_below_its_threshold_does_not_wait_for_ever
            }
            stopping {
                a_stopped_stream_is_drained_and_then_ends
                stop_gives_up_gaps_and_publishes_what_is_held_back
                stop_wakes_readers_that_wait
                drop_wakes_readers_that_wait
                figures_outlive_the_stream
                the_port_is_free_afterwards
            }
            side {
                what_is_no_rtp_is_passed_on
                a_long_datagram_is_passed_on_whole
                rtp_of_others_is_left_to_them_if_it_is_asked_to
                the_queue_is_bounded_and_counts_what_it_drops
            }
            hostile {
                every_truncation_of_a_header_is_counted
                every_corruption_of_a_header_is_counted
                lengths_that_do_not_fit_are_counted
                noise_is_counted
            }
            simulated {
                bursts_arrive_and_are_counted
                a_reader_that_does_not_read_overflows_the_ring
                settings_change_while_running
            }
            transmit {
                every_packet_leaves_once_in_order
                rtp_headers_continue_the_sequence
                packets_not_committed_leave_no_hole
                a_rate_is_never_exceeded
                launch_times_are_kept
                flush_waits_for_everything_sent
                close_gives_up_what_is_not_sent
                a_full_ring_waits_for_room
                the_descriptor_tells_of_room
                streams_of_one_context_do_not_block_one_another
                an_unreachable_destination_is_counted_and_never_in_the_way
                two_legs_send_the_same_packets
                one_leg_down_does_not_stop_the_other
                sender_reports_are_sent
                bye_is_sent_at_the_end
                lengths_that_do_not_fit_are_refused
                positions_wrap
                a_transmitter_dropped_ends
            }
            settings {
                a_receiver_refuses_what_is_out_of_range
                a_transmitter_refuses_what_is_out_of_range
                a_ring_is_grown_or_refused_for_its_reordering_time
                legs_that_cannot_be_opened_say_why
                the_engine_asked_for_runs_the_stream
                small_socket_buffers_are_warned_of
            }
        }
    };
}
