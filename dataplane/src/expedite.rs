//! Grace periods that the kernel hurries.
//!
//! To attach a TCX program, or detach one, waits for a grace period (`tcx_entry_sync`), under the lock of all links, and membarrier(2) does: some 16 ms each
//! at 250 ticks a second, and twice that where one is under way. Elsewhere the kernel hurries what waits under that lock (`synchronize_net`): processors that
//! are busy in the kernel are interrupted, and it takes well below a millisecond. [`SWITCH`] hurries all grace periods for as long as it is not 0 (what
//! `rcupdate.rcu_expedited` does from the kernel's command line; `rcu_normal` overrules both). So it is set while this process waits, and at no other time.
//!
//! It holds any number. Ours tells what an agent that was killed has left from what an operator has set, and the latter is never changed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};

/// The kernel's switch.
pub const SWITCH: &str = "/sys/kernel/rcu_expedited";
/// 1 where the kernel is built for real time, whose own code hurries nothing either.
const REALTIME: &str = "/sys/kernel/realtime";
/// What we set it to: "BULK" in ASCII.
const OURS: i32 = 0x4255_4c4b;

static HURRY: OnceLock<Switch> = OnceLock::new();

/// From now on grace periods that this process waits for are hurried. What a process that was killed has left is undone. Call it before rights are given away:
/// the file stays open.
///
/// # Errors
/// The kernel lacks it, it cannot be written here, or the kernel is built for real time: waiting takes as long as it takes.
pub fn allow() -> io::Result<()> {
    if fs::read_to_string(REALTIME).is_ok_and(|text| text.trim() == "1") {
        return Err(io::Error::other("this kernel is built for real time"));
    }
    let switch = Switch::open(Path::new(SWITCH))?;
    // Said twice, it is allowed all the same.
    drop(HURRY.set(switch));
    Ok(())
}

/// Undoes what an agent that was killed has left, where this process will not wait itself.
///
/// # Errors
/// It left something, and the switch cannot be written here.
pub fn undo() -> io::Result<()> {
    undo_at(Path::new(SWITCH))
}

fn undo_at(path: &Path) -> io::Result<()> {
    let is_left = fs::read_to_string(path).is_ok_and(|text| text.trim() == OURS.to_string());
    if is_left { Switch::open(path).map(drop) } else { Ok(()) }
}

/// Does what waits for a grace period, which is hurried if that is allowed.
pub(crate) fn waiting<T>(work: impl FnOnce() -> T) -> T {
    match HURRY.get() {
        Some(switch) => switch.while_set(work),
        None => work(),
    }
}

/// The switch, and how many threads wait.
#[derive(Debug)]
struct Switch {
    file: File,
    waiting: Mutex<usize>,
}

impl Switch {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let switch = Self { file, waiting: Mutex::new(0) };
        switch.change(OURS, 0)?;
        Ok(switch)
    }

    fn while_set<T>(&self, work: impl FnOnce() -> T) -> T {
        let _waits = Waits::on(self);
        work()
    }

    /// Sets it to `to` where it is `from`.
    fn change(&self, from: i32, to: i32) -> io::Result<()> {
        let mut text = [0; 16];
        let length = self.file.read_at(&mut text, 0)?;
        let number = str::from_utf8(&text[..length]).ok().and_then(|text| text.lines().next()?.parse().ok());
        if number == Some(from) {
            self.file.write_all_at(format!("{to}\n").as_bytes(), 0)?;
        }
        Ok(())
    }
}

/// A thread that waits. The first one sets the switch, the last one sets it back.
struct Waits<'a>(&'a Switch);

impl<'a> Waits<'a> {
    fn on(switch: &'a Switch) -> Self {
        let mut waiting = switch.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting += 1;
        if *waiting == 1
            && let Err(error) = switch.change(0, OURS)
        {
            tracing::debug!("{SWITCH} cannot be set, so that waiting takes longer: {error}");
        }
        Self(switch)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting -= 1;
        if *waiting == 0
            && let Err(error) = self.0.change(OURS, 0)
        {
            tracing::warn!(
                "{SWITCH} cannot be set back to 0, which the next agent does when it starts, or `bulkhead detach --all`: {error}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, thread};

    use bulkhead_fixtures::skip;

    use super::*;

    fn switch(content: &str) -> (tempfile::NamedTempFile, impl Fn() -> String + use<>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let path = file.path().to_owned();
        // The kernel's file holds one number, whatever stood there before; in ours the rest of a longer one stays.
        (file, move || fs::read_to_string(&path).unwrap().lines().next().unwrap_or_default().to_owned())
    }

    #[test]
    fn it_is_set_while_somebody_waits_and_set_back_by_the_last_one() {
        let (file, is) = switch("0\n");
        let switch = Switch::open(file.path()).unwrap();
        let set = OURS.to_string();
        thread::scope(|scope| {
            switch.while_set(|| {
                assert_eq!(is(), set);
                let other = scope.spawn(|| switch.while_set(|| assert_eq!(is(), set)));
                other.join().unwrap();
                assert_eq!(is(), set, "the first one still waits");
            });
        });
        assert_eq!(is(), "0");
    }

    #[test]
    fn the_kernel_takes_it() {
        if !skip::root()
            || !skip::require("a kernel that is not built for real time", fs::read_to_string(REALTIME).is_err())
        {
            return;
        }
        let is = || fs::read_to_string(SWITCH).unwrap().trim().to_owned();
        let before = is();
        Switch::open(Path::new(SWITCH)).unwrap().while_set(|| {
            let set = if before == "0" || before == OURS.to_string() { OURS.to_string() } else { before.clone() };
            assert_eq!(is(), set);
        });
        assert_ne!(is(), OURS.to_string());
    }

    #[test]
    fn a_panic_sets_it_back() {
        let (file, is) = switch("0\n");
        let switch = Switch::open(file.path()).unwrap();
        thread::scope(|scope| scope.spawn(|| switch.while_set(|| panic!("on purpose"))).join().unwrap_err());
        assert_eq!(is(), "0");
    }

    #[test]
    fn what_an_operator_has_set_stays() {
        let (file, is) = switch("1\n");
        let switch = Switch::open(file.path()).unwrap();
        switch.while_set(|| assert_eq!(is(), "1"));
        assert_eq!(is(), "1");
    }

    #[test]
    fn what_a_killed_process_has_left_is_undone() {
        let (file, is) = switch(&format!("{OURS}\n"));
        Switch::open(file.path()).unwrap();
        assert_eq!(is(), "0");
        let (file, is) = switch(&format!("{OURS}\n"));
        undo_at(file.path()).unwrap();
        assert_eq!(is(), "0");
    }

    #[test]
    fn where_nothing_is_left_nothing_is_undone() {
        let (file, is) = switch("1\n");
        undo_at(file.path()).unwrap();
        assert_eq!(is(), "1");
        undo_at(Path::new("/nonexistent")).unwrap();
    }
}
