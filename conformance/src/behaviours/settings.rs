//! What is refused, and in which words: the argument, its value, what is accepted.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use rtp_mgr::{
    Engine, Error, Leg, PacketRate, Receiver, ReceiverBuilder, SimConfig, TransmitterBuilder,
};

use crate::harness::{Harness, NotRun, loopback, ms, refusal};

/// The mistake, the argument and value that its text names, what it says is accepted.
type Case<B> = (fn(B) -> B, &'static str, &'static str);

#[track_caller]
fn assert_refused(error: &Error, named: &str, accepted: &str) {
    assert!(error.is_usage(), "{error}");
    let text = error.to_string();
    assert!(text.contains(named) && text.contains(accepted), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

pub(crate) fn a_receiver_refuses_what_is_out_of_range(h: &Harness) {
    let cases: [Case<ReceiverBuilder>; 22] = [
        (|b| b.ring_order(3), "ring_order 3", "4 to 20"),
        (|b| b.ring_order(21), "ring_order 21", "4 to 20"),
        (|b| b.slot_stride(63), "slot_stride 63", "64 to 65536"),
        (|b| b.slot_stride(65_537), "slot_stride 65537", "64 to 65536"),
        (|b| b.sources(0), "sources 0", "1 to 65535"),
        (|b| b.sources(65_536), "sources 65536", "1 to 65535"),
        (|b| b.payload_type(64), "payload_type 64", "0 to 63, 96 to 127"),
        (|b| b.payload_type(128), "payload_type 128", "0 to 63, 96 to 127"),
        (|b| b.clock_rate(96, 0), "clock_rate 0", "1 to 1000000000"),
        (|b| b.clock_rate(80, 8_000), "payload_type 80", "0 to 63, 96 to 127"),
        (|b| b.wake_threshold(0), "wake_threshold 0", "1 to 1024"),
        (|b| b.ring_order(4).wake_threshold(17), "wake_threshold 17", "1 to 16"),
        (|b| b.ordered(Duration::from_secs(61)), "ordered 61s", "0 to 60 s"),
        (|b| b.publish(""), "publish \"\"", "1 to 64"),
        (|b| b.publish("../up"), "publish \"../up\"", "1 to 64"),
        (|b| b.publish("x".repeat(65)), "publish \"xxx", "1 to 64"),
        (|b| b.leg(loopback()), "leg 127.0.0.1:0", "ordered"),
        (|b| b.ordered(ms(5)).leg(loopback()).leg(loopback()), "leg (3 legs)", "1 or 2"),
        (|b| b.simulated(SimConfig::default()), "leg 127.0.0.1:0", "no legs"),
        (|b| b.expected_rate(-1.0, 1_400), "expected_rate -1 packets/s", "more than 0"),
        (|b| b.expected_rate(f64::NAN, 1_400), "expected_rate NaN packets/s", "more than 0"),
        (|b| b.expected_rate(1.0, 65_536), "65536 bytes", "1 to 65,535 bytes"),
    ];
    for (mistake, named, accepted) in cases {
        let error = refusal(mistake(h.receiver().leg(loopback())).open());
        assert_refused(&error, named, accepted);
    }
    assert_refused(&refusal(h.receiver().open()), "leg (none)", "one leg");
    let simulated: [Case<SimConfig>; 4] = [
        (|sim| SimConfig { interval: Duration::ZERO, ..sim }, "interval 0ns", "100 us to 10 s"),
        (|sim| SimConfig { burst: 0, ..sim }, "burst 0", "1 to 65536"),
        (|sim| SimConfig { packet_len: 7, ..sim }, "packet_len 7", "8 to 2048"),
        (|sim| SimConfig { packet_len: 2_049, ..sim }, "packet_len 2049", "8 to 2048"),
    ];
    for (mistake, named, accepted) in simulated {
        let sim = mistake(SimConfig::default());
        let error = refusal(h.receiver().simulated(sim).open());
        assert_refused(&error, named, accepted);
    }
}

pub(crate) fn a_transmitter_refuses_what_is_out_of_range(h: &Harness) {
    let cases: [Case<TransmitterBuilder>; 14] = [
        (|b| b.ring_order(3), "ring_order 3", "4 to 20"),
        (|b| b.ring_order(21), "ring_order 21", "4 to 20"),
        (|b| b.slot_stride(63), "slot_stride 63", "64 to 65536"),
        (|b| b.slot_stride(65_537), "slot_stride 65537", "64 to 65536"),
        (|b| b.payload_type(95), "payload_type 95", "0 to 63, 96 to 127"),
        (|b| b.clock_rate(0), "clock_rate 0", "1 to 1000000000"),
        (|b| b.ttl(0), "ttl 0", "1 to 255"),
        (|b| b.dscp(64), "dscp 64", "0 to 63"),
        (|b| b.cname(""), "cname", "1 to 255"),
        (|b| b.cname("x".repeat(256)), "cname", "1 to 255"),
        (|b| b.publish(".hidden"), "publish \".hidden\"", "1 to 64"),
        (|b| b.leg(to(0)), "leg 127.0.0.1:0", "1 to 65535"),
        (|b| b.leg(to(5_006)).leg(to(5_008)), "leg (3 legs)", "1 or 2"),
        (|b| b.ring_order(0).slot_stride(0), "ring_order 0", "4 to 20"),
    ];
    for (mistake, named, accepted) in cases {
        let error = refusal(mistake(h.transmitter().leg(to(5_004))).open());
        assert_refused(&error, named, accepted);
    }
    assert_refused(&refusal(h.transmitter().open()), "leg (none)", "one leg");
    for (packets, seconds) in [(0, 1), (1, 0), (1_000_000_001, 1), (1, 1_000_001)] {
        let error = PacketRate::new(packets, seconds).unwrap_err();
        let named = format!("rate {packets} packets in {seconds} s");
        assert_refused(&error, &named, "1,000,000,000 packets/s");
    }
}

fn to(port: u16) -> Leg {
    Leg::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

pub(crate) fn a_ring_is_grown_or_refused_for_its_reordering_time(h: &Harness) {
    let builder = || h.receiver().leg(loopback()).ordered(ms(20));
    // 2,600 packets in 20 ms are to fit half of the ring.
    let rig = crate::harness::Rig::open(builder().expected_rate(130_000.0, 200));
    assert_eq!(rig.rx.slot_count(), 8_192);
    let error = refusal(builder().expected_rate(130_000.0, 200).ring_order(12).open());
    assert_refused(&error, "ring order 12", "ring order 13");
    let error = refusal(builder().expected_rate(1e9, 200).open());
    assert_refused(&error, "20 ms", "accepted");
}

pub(crate) fn legs_that_cannot_be_opened_say_why(h: &Harness) {
    let holding = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let port = holding.local_addr().expect("a bound socket").port();
    for (leg, named, remedy) in [
        (format!("127.0.0.1:{port}"), port.to_string(), "in use"),
        ("192.0.2.1:5004".to_owned(), "192.0.2.1".to_owned(), "address"),
        ("127.0.0.1%no-such-if:5004".to_owned(), "no-such-if".to_owned(), "interface"),
    ] {
        let leg: Leg = leg.parse().unwrap_or_else(|error| panic!("{error}"));
        let error = refusal(h.receiver().leg(leg).open());
        let text = error.to_string();
        assert!(matches!(error, Error::Socket(_)), "{text}");
        assert!(text.contains(&named) && text.contains(remedy), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    for (leg, named) in
        [("127.0.0.1:65536", "65536"), ("127.0.0.1", "127.0.0.1"), ("localhost:5004", "localhost")]
    {
        let error = leg.parse::<Leg>().unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

pub(crate) fn the_engine_asked_for_runs_the_stream(h: &Harness) {
    let rig = h.rig(|builder| builder);
    assert_eq!(rig.rx.engine(), h.kind());
    assert_eq!(rig.rx.stats().snapshot().engine, h.kind());
    assert!(!rig.rx.engine_reason().is_empty());
    let auto = Receiver::builder().leg(loopback()).rtcp(false).engine(Engine::Auto).open();
    let auto = auto.unwrap_or_else(|error| panic!("some engine always works: {error}"));
    assert!(!auto.engine_reason().is_empty());
    if std::fs::exists("/dev/rtp_mgr").unwrap_or(false) {
        return;
    }
    let error = refusal(Receiver::builder().leg(loopback()).engine(Engine::Kernel).open());
    assert!(matches!(error, Error::KernelEngine { .. }), "{error}");
    assert!(error.to_string().contains("modprobe rtp_mgr"), "{error}");
}

pub(crate) fn small_socket_buffers_are_warned_of(h: &Harness) -> Result<(), NotRun> {
    const ASKED: usize = 1 << 28;
    let small = h.rig(|builder| builder.socket_buffer(16_384));
    assert!(small.rx.warnings().is_empty(), "{:?}", small.rx.warnings());
    assert!(small.rx.stats().snapshot().legs[0].socket_buffer >= 16_384);
    // Who has CAP_NET_ADMIN gets what it asks for.
    let large =
        as_an_ordinary_user(|| h.rig(|builder| builder.socket_buffer(ASKED).announce(false)));
    let granted = large.rx.stats().snapshot().legs[0].socket_buffer;
    if granted >= ASKED as u64 {
        return Err(NotRun::because(
            "on this machine everybody gets as large a buffer as he likes",
        ));
    }
    let warnings = large.rx.warnings();
    let text = warnings.first().expect("a warning").text();
    assert!(text.contains("rmem_max") && text.contains(&granted.to_string()), "{text}");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    Ok(())
}

/// Runs `work` on a thread that is nobody's, if this user may change that.
fn as_an_ordinary_user<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let nobody = rustix::process::Uid::from_raw(65_534);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // Of this thread alone; its capabilities go with it.
            let _ = rustix::thread::set_thread_res_uid(nobody, nobody, nobody);
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
