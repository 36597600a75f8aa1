//! Readers of the soak in processes of their own: steady ones, and a crowd that stalls, leaves, comes back and is
//! killed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rtp_mgr::{Attached, Error, Mode};

use super::tally::Tally;
use crate::child::{Remote, say};
use crate::dice::Dice;
use crate::harness::{Harness, ms};

/// Of each stream, beside the steady one.
const CROWD: usize = 3;

/// The reader processes of all streams.
pub(crate) struct Crowd<'a> {
    h: &'a Harness,
    names: Vec<String>,
    dice: Dice,
    steady: Vec<Remote>,
    wild: Vec<Vec<Remote>>,
    pub account: Account,
}

/// What became of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub started: u64,
    pub killed: u64,
    pub ended: u64,
    pub packets: u64,
    pub missed: u64,
    pub stalls: u64,
    /// By stream: what its steady reader heard.
    pub steady: Vec<Tally>,
    pub wrong: Vec<String>,
}

impl<'a> Crowd<'a> {
    /// Steady readers only, for streams with these names.
    #[track_caller]
    pub(crate) fn new(h: &'a Harness, names: Vec<String>, seed: u64) -> Self {
        let steady = names.iter().map(|name| Remote::role(h, &format!("steady {name}"))).collect();
        let wild = names.iter().map(|_| Vec::new()).collect();
        let dice = Dice::new(seed);
        let account = Account { started: names.len() as u64, ..Account::default() };
        Self { h, names, dice, steady, wild, account }
    }

    /// Something happens among them, and those that are missing are replaced.
    #[track_caller]
    pub(crate) fn stir(&mut self) {
        let stream = self.dice.below(self.names.len() as u64) as usize;
        if self.wild[stream].len() == CROWD {
            let at = self.dice.below(CROWD as u64) as usize;
            match self.dice.below(10) {
                0..=3 => {
                    self.wild[stream].remove(at).kill();
                    self.account.killed += 1;
                }
                4 => {
                    let reader = self.wild[stream].remove(at);
                    self.dismiss(reader);
                }
                _ => {}
            }
        } else {
            let mode = if self.dice.chance(50) { "reliable" } else { "lossy" };
            let role = format!("wild {} {mode} {}", self.names[stream], self.dice.next());
            self.wild[stream].push(Remote::role(self.h, &role));
            self.account.started += 1;
        }
    }

    /// Lets one end by itself, and takes what it has to say.
    #[track_caller]
    fn dismiss(&mut self, mut reader: Remote) {
        reader.close();
        let answer = reader.answer("reading");
        self.account.packets += answer.get::<u64>("packets");
        self.account.missed += answer.get::<u64>("missed");
        self.account.stalls += answer.get::<u64>("stalls");
        let (torn, jumps): (u64, u64) = (answer.get("torn"), answer.get("jumps"));
        if torn + jumps > 0 {
            self.account.wrong.push(format!("a reader heard {answer:?}"));
        }
        self.account.ended += 1;
        reader.end();
    }

    /// All but the steady ones go.
    #[track_caller]
    pub(crate) fn disperse(&mut self) {
        let all: Vec<Remote> = self.wild.iter_mut().flat_map(std::mem::take).collect();
        for reader in all {
            if self.dice.chance(50) {
                reader.kill();
                self.account.killed += 1;
            } else {
                self.dismiss(reader);
            }
        }
    }

    /// The streams have stopped: the steady ones tell what they heard.
    #[track_caller]
    pub(crate) fn conclude(mut self) -> Account {
        for mut reader in self.steady {
            let answer = reader.answer("reading to the end");
            self.account.steady.push(Tally {
                packets: answer.get("packets"),
                gaps: answer.get("gaps"),
                missed: answer.get("missed"),
                breaks: answer.get("breaks"),
                torn: answer.get("torn"),
                jumps: answer.get("jumps"),
                ..Tally::default()
            });
            self.account.ended += 1;
            reader.end();
        }
        self.account
    }
}

/// `main` of a steady reader: reads until the stream ends.
pub(crate) fn steady(name: &str) -> Result<(), Error> {
    let mut attached = Attached::open(name, Mode::Lossy)?;
    say("attached=1");
    let mut tally = Tally::default();
    while let Some(batch) = attached.read(Duration::from_secs(1))? {
        batch.iter().for_each(|item| tally.add(item));
    }
    say(&tally.text());
    Ok(())
}

/// `main` of one of the crowd: until its standard input or the stream ends.
pub(crate) fn wild(name: &str, mode: &str, seed: u64) -> Result<(), Error> {
    let mode = if mode == "reliable" { Mode::Reliable } else { Mode::Lossy };
    let mut attached = Attached::open(name, mode)?;
    say("attached=1");
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        told.store(true, Ordering::Release);
    });
    let mut dice = Dice::new(seed);
    let (mut tally, mut stalls) = (Tally::default(), 0);
    while !over.load(Ordering::Acquire) {
        match dice.below(20) {
            0..=13 => match attached.read(ms(50))? {
                Some(batch) => batch.iter().for_each(|item| tally.add(item)),
                None => break,
            },
            // The stall is what is tried.
            14..=16 => thread::sleep(ms(dice.below(40))),
            17 => {
                stalls += 1;
                thread::sleep(ms(100 + dice.below(600)));
            }
            18 => {
                drop(attached);
                attached = Attached::open(name, mode)?;
                tally.forget();
            }
            // Holds a batch while it is away.
            _ => match attached.read(ms(50))? {
                Some(batch) => {
                    thread::sleep(ms(dice.below(100)));
                    batch.iter().for_each(|item| tally.add(item));
                }
                None => break,
            },
        }
    }
    say(&format!("{} stalls={stalls}", tally.text()));
    Ok(())
}
