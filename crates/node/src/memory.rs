//! Looks at what the operating system counts as this process's memory, and tells the scheduler.

use std::time::Duration;

use crate::Handle;
use crate::message::Message;

/// How often.
const EVERY: Duration = Duration::from_millis(100);

/// Until the node ends.
pub(crate) fn watch(handle: &Handle) {
    while !handle.driver.is_stopped() {
        if let Ok(bytes) = quadrant_sys::resident_bytes() {
            handle.driver.post(Message::Resident(bytes));
        }
        std::thread::park_timeout(EVERY);
    }
}
