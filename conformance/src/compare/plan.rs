//! What one round sends to both streams, made from a seed: their settings, and every datagram.
//!
//! What lives here: settings and traffic. What does not: sending ([`super::round`]).
//!
//! Engines may decide by time only where both see the same time whatever the machine does meanwhile. So gaps
//! stay open for longer than any round; where a number jumps so far that the clocks decide between loss and a
//! restart ([`rtp_mgr::ring::source`]), the timestamp either agrees well within what is allowed or is hours off;
//! and silence that matters is waited for.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::behaviours::ordered::bye;
use crate::dice::Dice;
use crate::wire::{HEADER, Rtp, payload};

/// How long gaps stay open.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(60);
/// A silence after which another source takes over, and no doubt about it: 200 ms are asked for.
const SILENCE: Duration = Duration::from_millis(320);
/// How long an outage lasts.
const OUTAGE: Duration = Duration::from_millis(600);
/// Timestamp units that are hours at any usual rate.
const FAR: u32 = 1 << 30;
/// Packets of a train at most, and of one of long packets: a socket buffer holds it one by one, too.
const TRAIN_MAX: u64 = 64;
const LONG_TRAIN_MAX: u64 = 20;
/// The longest datagram that IPv4 carries.
const LONGEST: usize = 65_507;
/// Events of a round.
const EVENTS: usize = 14;

/// The settings of both streams.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub ordered: bool,
    pub legs: usize,
    pub ipv6: bool,
    pub ring_order: u8,
    pub slot_stride: u32,
    pub sources: u32,
    pub gro: bool,
    pub start: u64,
    pub payload_type: Option<u8>,
    pub ssrc: Option<u32>,
    pub source_address: Option<IpAddr>,
    pub clock_rate: Option<(u8, u32)>,
    /// A lossy reader reads now and then.
    pub skimmed: bool,
}

impl Shape {
    /// The address of the legs.
    pub(crate) fn local(&self) -> IpAddr {
        if self.ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
    }
}

/// Something to do with both streams.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Packets from one sender to one leg: one datagram, or a train.
    Send {
        leg: usize,
        from: usize,
        packets: Vec<Vec<u8>>,
        followed: bool,
    },
    /// A datagram that is no RTP, after which the engine knows what it said.
    Tell {
        leg: usize,
        from: usize,
        datagram: Vec<u8>,
    },
    Read,
    /// The lossy reader reads.
    Skim,
    Pause(Duration),
}

impl Step {
    /// The number of its sender.
    pub(crate) fn sender(&self) -> Option<usize> {
        match self {
            Self::Send { from, .. } | Self::Tell { from, .. } => Some(*from),
            _ => None,
        }
    }
}

/// A round: what both streams are like, and what happens to them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub shape: Shape,
    pub steps: Vec<Step>,
}

impl Plan {
    /// The plan that belongs to a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let (shape, speaker) = shape(&mut dice, seed);
        let network = Network::new(&mut dice);
        let mut writer = Writer { dice, speaker, network, steps: Vec::new(), shape };
        writer.write();
        Self { shape: writer.shape, steps: writer.steps }
    }

    /// Datagrams of the plan.
    pub(crate) fn datagrams(&self) -> usize {
        let datagrams = |step: &Step| match step {
            Step::Send { packets, .. } => packets.len(),
            Step::Tell { .. } => 2,
            _ => 0,
        };
        self.steps.iter().map(datagrams).sum()
    }
}

fn choose<T: Copy>(dice: &mut Dice, from: &[T]) -> T {
    from[dice.below(from.len() as u64) as usize]
}

/// Settings, and the source that speaks first. Neighbouring seeds differ in what matters most.
fn shape(dice: &mut Dice, seed: u64) -> (Shape, Speaker) {
    let ordered = !seed.is_multiple_of(3);
    let legs = if seed % 3 == 2 { 2 } else { 1 };
    let ipv6 = dice.chance(25);
    let payload_type = choose(dice, &[96, 0, 33, 127]);
    let speaker = Speaker::new(dice, 0, payload_type);
    let some = |dice: &mut Dice, percent| dice.chance(percent);
    let local: IpAddr = Ipv4Addr::LOCALHOST.into();
    let shape = Shape {
        ordered,
        legs,
        ipv6,
        ring_order: choose(dice, &[4, 5, 6, 7, 8, 9]),
        slot_stride: choose(dice, &[64, 128, 200, 512, 1_472, 2_048, 9_000]),
        sources: if ordered { 64 } else { choose(dice, &[4, 64, 1_024]) },
        gro: some(dice, 50),
        start: choose(dice, &[0, 1_000, u64::MAX - 300]),
        payload_type: some(dice, 25).then_some(payload_type),
        ssrc: some(dice, 12).then_some(speaker.ssrc),
        source_address: (!ipv6 && some(dice, 12)).then_some(local),
        clock_rate: (payload_type >= 96 && some(dice, 70)).then_some((payload_type, 90_000)),
        skimmed: some(dice, 40),
    };
    (shape, speaker)
}

/// A source of RTP.
#[derive(Clone, Debug)]
struct Speaker {
    from: usize,
    ssrc: u32,
    payload_type: u8,
    next: u16,
    timestamp: u32,
    ticks: u32,
}

impl Speaker {
    fn new(dice: &mut Dice, from: usize, payload_type: u8) -> Self {
        Self {
            from,
            // 0 is valid.
            ssrc: if dice.chance(10) { 0 } else { dice.next() as u32 },
            payload_type,
            // Most rounds see the number wrap.
            next: if dice.chance(60) { 65_300 } else { dice.next() as u16 },
            timestamp: dice.next() as u32,
            ticks: choose(dice, &[1, 160, 3_000]),
        }
    }

    /// Its next packet's fixed header.
    fn next(&mut self, payload_len: usize) -> Rtp {
        let (sequence, timestamp) = (self.next, self.timestamp);
        self.next = self.next.wrapping_add(1);
        self.timestamp = self.timestamp.wrapping_add(self.ticks);
        let (ssrc, payload_type) = (self.ssrc, self.payload_type);
        Rtp { ssrc, payload_type, sequence, timestamp, marker: false, payload_len }
    }
}

/// RTP with any of what a header can have (RFC 3550 section 5.1): CSRCs, an extension, padding.
fn dressed(dice: &mut Dice, rtp: &Rtp) -> Vec<u8> {
    let mut bytes = rtp.header().to_vec();
    let csrcs = dice.below(16) as usize;
    bytes[0] |= csrcs as u8;
    bytes.extend(dice.bytes(4 * csrcs));
    if dice.chance(60) {
        let words = dice.below(6) as usize;
        bytes[0] |= 0x10;
        bytes.extend([0xbe, 0xde, 0, words as u8]);
        bytes.extend(dice.bytes(4 * words));
    }
    bytes.extend(payload(rtp.ssrc, rtp.sequence, rtp.payload_len));
    if dice.chance(50) {
        let padding = 1 + dice.below(40) as usize;
        bytes[0] |= 0x20;
        bytes.extend(vec![0; padding - 1]);
        bytes.push(padding as u8);
    }
    bytes
}

/// What the way does to packets.
#[derive(Clone, Copy, Debug)]
struct Network {
    loss: u64,
    copies: u64,
    late: u64,
    /// How far packets are late, at most.
    distance: u64,
}

impl Network {
    fn new(dice: &mut Dice) -> Self {
        Self {
            loss: choose(dice, &[0, 2, 10, 40]),
            copies: choose(dice, &[0, 5, 20]),
            late: choose(dice, &[0, 5, 20]),
            distance: choose(dice, &[3, 20, 150]),
        }
    }

    /// The packets as they arrive.
    fn carry(self, dice: &mut Dice, packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut arrivals = BTreeMap::new();
        for (at, packet) in packets.iter().enumerate() {
            let copies = 1 + u64::from(dice.chance(self.copies));
            for copy in 0..copies {
                if dice.chance(self.loss) {
                    continue;
                }
                let late = if dice.chance(self.late) { dice.below(self.distance) } else { 0 };
                arrivals.insert((at as u64 + late, at, copy), packet.clone());
            }
        }
        arrivals.into_values().collect()
    }
}

/// Writes the steps of a round.
struct Writer {
    dice: Dice,
    shape: Shape,
    /// Whom an ordered stream follows.
    speaker: Speaker,
    network: Network,
    steps: Vec<Step>,
}

impl Writer {
    fn write(&mut self) {
        self.run(40);
        self.outage();
        for _ in 0..EVENTS {
            match self.dice.below(16) {
                0..=3 => {
                    let count = 40 + self.dice.below(120) as usize;
                    self.run(count);
                }
                4 => self.flood(),
                5 => self.trains(),
                6 => self.lengths(),
                7 => self.jump(),
                8 => self.restart(),
                9 => self.rival(),
                10 => self.truncated(),
                11 => self.corrupted(),
                12 => self.noise(),
                13 => self.others(),
                14 => self.leg_away(),
                _ => self.takeover(),
            }
            if self.dice.chance(70) {
                self.steps.push(Step::Read);
            }
            if self.dice.chance(15) {
                self.steps.push(Step::Skim);
            }
        }
        self.run(40);
    }

    fn one(&mut self, leg: usize, packet: Vec<u8>) {
        let from = self.speaker.from;
        self.steps.push(Step::Send { leg, from, packets: vec![packet], followed: true });
    }

    /// Not of the source that an ordered stream follows, or not for sure.
    fn aside(&mut self, leg: usize, from: usize, packet: Vec<u8>) {
        self.steps.push(Step::Send { leg, from, packets: vec![packet], followed: false });
    }

    fn any_leg(&mut self) -> usize {
        self.dice.below(self.shape.legs as u64) as usize
    }

    /// Packets on one leg while the other has none: few, so that its silence stays far from the 200 ms that
    /// decide.
    fn one_sided(&self, count: usize) -> usize {
        if self.shape.legs == 2 { count / 3 } else { count }
    }

    /// A usual payload length: mostly one that fits.
    fn len(&mut self) -> usize {
        let fits = (self.shape.slot_stride as usize - HEADER).min(400);
        self.dice.below(fits as u64 + 1) as usize
    }

    fn packet(&mut self) -> Vec<u8> {
        let len = self.len();
        let mut rtp = self.speaker.next(len);
        rtp.marker = self.dice.chance(10);
        // Some are of another type, as comfort noise is.
        if self.dice.chance(4) {
            rtp.payload_type = 13;
        }
        if self.dice.chance(15) { dressed(&mut self.dice, &rtp) } else { rtp.bytes() }
    }

    /// The speaker goes on, over a network.
    fn run(&mut self, count: usize) {
        let packets: Vec<Vec<u8>> = (0..count).map(|_| self.packet()).collect();
        if self.shape.legs == 1 {
            let carried = self.network.carry(&mut self.dice, &packets);
            carried.into_iter().for_each(|packet| self.one(0, packet));
            return;
        }
        // One leg is ahead by up to three pieces.
        let ahead = self.any_leg();
        let lag = self.dice.below(4) as usize;
        let size = 5 + self.dice.below(8) as usize;
        let pieces: Vec<_> = packets.chunks(size).collect();
        for at in 0..pieces.len() + lag {
            for (leg, at) in [(ahead, Some(at)), (1 - ahead, at.checked_sub(lag))] {
                let piece = at.and_then(|at| pieces.get(at));
                let network = self.network;
                let carried = piece.map(|piece| network.carry(&mut self.dice, piece));
                carried.into_iter().flatten().for_each(|packet| self.one(leg, packet));
            }
        }
    }

    /// More than the ring holds, and nobody reads.
    fn flood(&mut self) {
        let positions = 1_usize << self.shape.ring_order;
        let most = if self.shape.legs == 2 { 48 } else { 500 };
        let count = (positions * 3 / 2).min(most);
        for _ in 0..count {
            let packet = self.packet();
            let leg = if self.shape.legs == 2 { count % 2 } else { 0 };
            self.one(leg, packet);
        }
        self.steps.push(Step::Read);
        self.run(10);
    }

    /// Coalesced packets, the last of each perhaps shorter. Of two legs both get them.
    fn trains(&mut self) {
        for _ in 0..1 + self.dice.below(4) {
            // Some do not fit a slot, piece by piece.
            let long = self.dice.chance(25);
            let len = if long { self.dice.below(1_400) as usize } else { self.len() };
            let most = if long { LONG_TRAIN_MAX } else { TRAIN_MAX };
            let count = 2 + self.dice.below(most - 1);
            let mut packets: Vec<_> = (1..count).map(|_| self.speaker.next(len).bytes()).collect();
            let last = self.dice.below(len as u64 + 1) as usize;
            packets.push(self.speaker.next(last).bytes());
            // What is no RTP may end a train.
            if self.dice.chance(20)
                && let Some(last) = packets.last_mut()
            {
                *last = sender_report(self.speaker.ssrc);
                last.truncate(HEADER + len);
            }
            let from = self.speaker.from;
            for leg in 0..self.shape.legs {
                let packets = packets.clone();
                self.steps.push(Step::Send { leg, from, packets, followed: true });
            }
        }
    }

    /// Lengths on either side of what a slot holds, the least and the greatest.
    fn lengths(&mut self) {
        let stride = self.shape.slot_stride as usize;
        for len in [HEADER, stride - 1, stride, stride + 1, stride * 2, 1_000, LONGEST] {
            let packet = self.speaker.next(len.saturating_sub(HEADER)).bytes();
            (0..self.shape.legs).for_each(|leg| self.one(leg, packet.clone()));
        }
        let leg = self.any_leg();
        self.aside(leg, 0, Vec::new());
        self.aside(leg, 0, vec![0xff; LONGEST]);
        self.aside(leg, 0, vec![0x80, 200, 0]);
    }

    /// Loss that the number alone tells (RFC 3550 A.1, MAX_DROPOUT), and a packet out of nowhere.
    fn jump(&mut self) {
        let lost = 1 + self.dice.below(2_000) as u16;
        self.speaker.next = self.speaker.next.wrapping_add(lost);
        let ticks = u32::from(lost).wrapping_mul(self.speaker.ticks);
        self.speaker.timestamp = self.speaker.timestamp.wrapping_add(ticks);
        self.run(30);
        let mut stray = self.speaker.clone();
        stray.next = stray.next.wrapping_add(20_000);
        stray.timestamp = stray.timestamp.wrapping_add(FAR);
        let leg = self.any_leg();
        self.aside(leg, stray.from, stray.next(20).bytes());
        self.run(30);
    }

    /// The same source somewhere else in its sequence, on all legs.
    fn restart(&mut self) {
        let away = 3_500 + self.dice.below(50_000) as u16;
        self.speaker.next = self.speaker.next.wrapping_add(away);
        self.speaker.timestamp = self.speaker.timestamp.wrapping_add(FAR);
        self.begin();
    }

    /// The first packets of a sequence come on all legs, in order.
    fn begin(&mut self) {
        let packets: Vec<_> = (0..4).map(|_| self.packet()).collect();
        for leg in 0..self.shape.legs {
            packets.iter().for_each(|packet| self.one(leg, packet.clone()));
        }
        self.run(30);
    }

    /// Another source in between.
    fn rival(&mut self) {
        let mut rival = self.another();
        let leg = self.any_leg();
        for _ in 0..1 + self.dice.below(30) {
            let len = self.len();
            self.aside(leg, rival.from, rival.next(len).bytes());
            if self.dice.chance(30) {
                let packet = self.packet();
                self.one(leg, packet);
            }
        }
        // On all legs, so that nobody waits for another.
        for leg in 0..self.shape.legs {
            let packet = self.packet();
            self.one(leg, packet);
        }
    }

    fn another(&mut self) -> Speaker {
        let senders = if self.shape.ipv6 { 1 } else { 3 };
        let from = self.dice.below(senders) as usize;
        let payload_type = self.speaker.payload_type;
        Speaker::new(&mut self.dice, from, payload_type)
    }

    /// Packets cut short anywhere, as long as they have all that a header can have.
    fn truncated(&mut self) {
        let leg = self.any_leg();
        for _ in 0..self.one_sided(60) {
            let len = self.len();
            let rtp = self.speaker.next(len);
            let whole = dressed(&mut self.dice, &rtp);
            let cut = self.dice.below(whole.len().min(100) as u64 + 1) as usize;
            self.aside(leg, self.speaker.from, whole[..cut].to_vec());
        }
        self.run(20);
    }

    /// Packets with a wrong byte in the header or the last place.
    fn corrupted(&mut self) {
        let leg = self.any_leg();
        for _ in 0..self.one_sided(60) {
            let mut rtp = self.speaker.next(20);
            let number = self.dice.next();
            let at = self.dice.below(HEADER as u64 + 30) as usize;
            match at {
                // Where it decides, the time is far off.
                2..4 => (rtp.sequence, rtp.timestamp) = (number as u16, rtp.timestamp ^ FAR),
                4..8 => rtp.timestamp ^= FAR | number as u32 & 0xfff,
                _ => {}
            }
            let mut bytes = dressed(&mut self.dice, &rtp);
            let at = if self.dice.chance(10) { bytes.len() - 1 } else { at.min(bytes.len() - 1) };
            if !(2..8).contains(&at) {
                bytes[at] =
                    choose(&mut self.dice, &[0, 1, 15, 31, 63, 64, 128, 144, 192, 200, 255]);
            }
            self.aside(leg, self.speaker.from, bytes);
        }
        self.run(20);
    }

    /// Random bytes, most of them almost RTP: as many sources.
    fn noise(&mut self) {
        let leg = self.any_leg();
        for _ in 0..self.one_sided(80) {
            let len = self.dice.below(80) as usize;
            let mut bytes = self.dice.bytes(len);
            if self.dice.chance(70)
                && let Some(first) = bytes.first_mut()
            {
                *first = 0x80 | *first & 0x3f;
            }
            self.aside(leg, 0, bytes);
        }
        self.run(20);
    }

    /// What shares a port with RTP (RFC 5761, RFC 7983), in the middle of it.
    fn others(&mut self) {
        let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        stun.extend(self.dice.bytes(12));
        let mut dtls = vec![22, 254, 253];
        dtls.extend(self.dice.bytes(60));
        let mut long = sender_report(self.speaker.ssrc);
        long.extend([0x81, 202, 0, 250]);
        long.extend(self.dice.bytes(1_000));
        let report = sender_report(self.speaker.ssrc);
        for datagram in [report, stun, dtls, vec![40; 30], b"what is this?".to_vec(), long] {
            let leg = self.any_leg();
            self.aside(leg, self.speaker.from, datagram);
            self.run(5);
        }
    }

    /// One leg alone, for a moment, or after a silence.
    fn leg_away(&mut self) {
        if self.shape.legs == 1 {
            return self.run(30);
        }
        let leg = self.any_leg();
        let long = self.dice.chance(30);
        if long {
            self.steps.push(Step::Pause(SILENCE));
        }
        for _ in 0..30 {
            let packet = self.packet();
            self.one(leg, packet);
        }
        // Both again.
        let packet = self.packet();
        (0..2).for_each(|leg| self.one(leg, packet.clone()));
        self.run(30);
    }

    /// Another source speaks from now on: an ordered stream hears that the one before has left, or nothing
    /// of it.
    fn takeover(&mut self) {
        let (leg, before) = (self.any_leg(), self.speaker.clone());
        if !self.shape.ordered {
            self.speaker = self.another();
            return self.run(60);
        }
        self.speaker = self.another();
        if self.dice.chance(50) {
            let datagram = bye(before.ssrc);
            self.steps.push(Step::Tell { leg, from: before.from, datagram });
        } else {
            self.steps.push(Step::Pause(SILENCE));
        }
        self.begin();
    }

    /// Loss of more than the number alone tells: the clocks have to. It comes early, while the source's pace is
    /// that of a run without pauses: there was ample time for what is missing.
    fn outage(&mut self) {
        let Some((_, hz)) = self.shape.clock_rate else { return };
        self.steps.push(Step::Pause(OUTAGE));
        let ticks = (u128::from(hz) * (OUTAGE.as_millis() + 50) / 1_000) as u32;
        self.speaker.next = self.speaker.next.wrapping_add(3_050);
        self.speaker.timestamp = self.speaker.timestamp.wrapping_add(ticks);
        self.begin();
    }
}

/// An RTCP sender report without report blocks (RFC 3550 section 6.4.1).
fn sender_report(ssrc: u32) -> Vec<u8> {
    let mut bytes = vec![0x80, 200, 0, 6];
    bytes.extend(ssrc.to_be_bytes());
    bytes.extend([0; 20]);
    bytes
}
