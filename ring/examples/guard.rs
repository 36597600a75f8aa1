//! A fixed amount of work on the ring's hot paths, whose instructions `cargo xtask guard` counts:
//! `guard CASE PACKETS`.

#[path = "../benches/driver/mod.rs"]
mod driver;

const BATCH: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (Some(case), Some(packets)) =
        (arguments.get(1), arguments.get(2).and_then(|packets| packets.parse::<u64>().ok()))
    else {
        eprintln!("usage: guard hop|ordered|arrival PACKETS");
        std::process::exit(2);
    };
    let mut hop = driver::Hop::new();
    let mut receive =
        driver::Receive::new(case == "ordered", if case == "arrival" { 1_000 } else { 1 });
    let mut read = 0;
    while read < packets {
        let more = if case == "hop" { hop.batch(BATCH) } else { receive.batch(BATCH) };
        if more == 0 {
            eprintln!("{case}: nothing came through after {read} packets");
            std::process::exit(1);
        }
        read += more;
    }
}
