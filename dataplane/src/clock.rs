//! The kernel's jiffies, which nothing but a program can read.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd};

use aya_obj::generated::{
    BPF_ALU64, BPF_CALL, BPF_EXIT, BPF_JMP, BPF_K, BPF_MEM, BPF_MOV, BPF_RSH, BPF_STX, BPF_W, BPF_X, bpf_insn,
};

use crate::sys::{self, SkbContext};

/// Helper `bpf_jiffies64`.
const JIFFIES64: i32 = 118;
/// Offset of `cb` in `struct __sk_buff`.
const CB: i16 = 48;

/// Reads jiffies.
#[derive(Debug)]
pub struct Clock {
    program: OwnedFd,
    hz: u64,
}

impl Clock {
    /// Loads the program that reads them.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let program = sys::load_classifier(
            "jiffies",
            &[
                insn(BPF_ALU64 | BPF_MOV | BPF_X, 6, 1, 0, 0),
                insn(BPF_JMP | BPF_CALL, 0, 0, 0, JIFFIES64),
                insn(BPF_STX | BPF_MEM | BPF_W, 6, 0, CB, 0),
                insn(BPF_ALU64 | BPF_RSH | BPF_K, 0, 0, 0, 32),
                insn(BPF_STX | BPF_MEM | BPF_W, 6, 0, CB + 4, 0),
                insn(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),
                insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
            ],
        )?;
        Ok(Self { program, hz: hz()? })
    }

    /// Now, in jiffies.
    ///
    /// # Errors
    /// The kernel's.
    pub fn jiffies(&self) -> io::Result<u64> {
        let [low, high, ..] = sys::test_run(&self.program, &[0; 64], SkbContext::default(), 1)?.context.cb;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Jiffies a second (`CONFIG_HZ`).
    #[must_use]
    pub fn hz(&self) -> u64 {
        self.hz
    }
}

fn insn(code: u32, dst: u8, src: u8, off: i16, imm: i32) -> bpf_insn {
    // Only a byte is defined.
    let code = code as u8;
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(dst, src), off, imm }
}

/// The coarse clocks step once a jiffy, and say how far. (`_SC_CLK_TCK` is the 100 of the user interface, whatever the kernel does.)
fn hz() -> io::Result<u64> {
    let mut step = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: writes one `timespec`.
    if unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, step.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: written by the call that succeeded.
    let step = unsafe { step.assume_init() };
    match u64::try_from(step.tv_nsec) {
        Ok(nanoseconds @ 1..) if step.tv_sec == 0 => Ok((1_000_000_000 + nanoseconds / 2) / nanoseconds),
        _ => Err(io::Error::other("the coarse clock has no step")),
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Instant};

    use bulkhead_fixtures::skip;

    use super::*;

    /// Over half a second the measured rate tells 250 from 300, however late this thread wakes up.
    #[test]
    fn jiffies_run_at_the_stated_rate() {
        if !skip::root() {
            return;
        }
        let clock = Clock::new().unwrap();
        let sample = || (Instant::now(), clock.jiffies().unwrap());
        let (from, first) = sample();
        thread::sleep(std::time::Duration::from_millis(500));
        let (to, last) = sample();
        let rate = (last - first) as f64 / (to - from).as_secs_f64();
        let stated = clock.hz() as f64;
        assert!((rate / stated - 1.0).abs() < 0.05, "{rate} jiffies a second, {stated} stated");
    }
}
