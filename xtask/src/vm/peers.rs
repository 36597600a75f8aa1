//! FFmpeg and GStreamer for the machine: a read-only disk with their programs, made once.
//!
//! They load hundreds of libraries. An archive with those would be unpacked into the machine's memory at
//! every boot; of a disk only what is used is read. On it:
//!
//! | folder | what is there |
//! |---|---|
//! | `bin` | the programs |
//! | `lib` | every library that they and the plugins load |
//! | `plugins` | GStreamer's plugins, those that the tests use |
//! | `media` | a transport stream whose size is a multiple of what seven packets have |

use std::path::PathBuf;

use anyhow::Result;

use super::cache::{Cache, require_root};
use super::prepare::quiet;
use super::suite::{Kernel, PLACE};

const PACKAGES: [&str; 5] = [
    "ffmpeg",
    "gstreamer1.0-tools",
    "gstreamer1.0-plugins-base",
    "gstreamer1.0-plugins-good",
    "e2fsprogs",
];
const PLUGINS: &str = "coreelements audioconvert wavparse typefindfunctions rtp rtpmanager udp";
/// Makes the disk, in the chroot.
const MAKE: &str = "
    rm -rf $place && mkdir -p $place/disk && cd $place/disk
    mkdir bin lib plugins media
    cp $(which ffmpeg gst-launch-1.0) bin/
    for plugin in $plugins; do
        cp /usr/lib/x86_64-linux-gnu/gstreamer-1.0/libgst$plugin.so plugins/
    done
    ldd bin/* plugins/* | sed -n 's/.* => \\(\\/[^ ]*\\) .*/\\1/p' | sort -u | xargs cp -L -t lib
    ffmpeg -nostdin -v error -f lavfi -i testsrc2=size=176x144:rate=25:duration=2 \
        -f lavfi -i sine=frequency=1000:sample_rate=48000:duration=2 \
        -c:v mpeg2video -b:v 400k -c:a mp2 -b:a 64k -muxrate 800k \
        -pes_payload_size 0 -f mpegts media/whole.ts
    size=$(stat -c %s media/whole.ts)
    head -c $((size - size % 1316)) media/whole.ts >media/programme.ts
    rm media/whole.ts
    size=$(du -sk . | cut -f 1)
    mke2fs -q -t ext4 -O ^has_journal -m 0 -d . ../disk.img $((size + size / 8 + 8192))k
    cd .. && rm -r disk";

/// The disk's image.
pub fn disk(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let name = format!("peers-{}", kernel.suite.kernels);
    let image = cache.path(format!("{name}.img"));
    cache.once(&name, || {
        require_root()?;
        kernel.suite.update(cache)?;
        kernel.suite.install(cache, &PACKAGES)?;
        let place = format!("/{PLACE}/peers");
        let script = format!("place={place}; plugins='{PLUGINS}'; {MAKE}");
        quiet(kernel.command(cache, "sh").args(["-ec", &script]))?;
        let made = kernel.outside(cache, &format!("{place}/disk.img"));
        Ok(std::fs::rename(made, &image)?)
    })?;
    Ok(image)
}
