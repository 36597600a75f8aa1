//! Time per packet of batched receive and send over loopback, with and without offloads.

use std::net::UdpSocket;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rtp_mgr::net::{RecvBatch, SendBatch, SlotMemory, set_gro};

const PACKETS: usize = 64;
const LEN: usize = 1_212;

fn batch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("send and receive 64 packets of 1,212 B");
    group.throughput(Throughput::Elements(PACKETS as u64));
    for offload in [false, true] {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        set_gro(&receiver, offload).expect("UDP_GRO");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = receiver.local_addr().expect("its address");
        sender.connect(address).expect("connected");
        let mut send = SendBatch::new(SlotMemory::private(PACKETS as u32, LEN), PACKETS, offload);
        let mut receive = RecvBatch::new(SlotMemory::private(2_048, 2_048), PACKETS, PACKETS);
        let mut slots = 0..2_048;
        let name = if offload { "GSO to GRO" } else { "one by one" };
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for slot in 0..PACKETS as u32 {
                    send.add(slot, LEN);
                }
                send.send(&sender);
                send.clear();
                receive.adapt(1_024);
                receive.fill(|| slots.next());
                while receive.receive(&receiver).expect("received") > 0 {
                    while receive.next_packet(|| None).is_some() {}
                    receive.fill(|| slots.next());
                }
            });
        });
    }
}

criterion_group!(benches, batch);
criterion_main!(benches);
