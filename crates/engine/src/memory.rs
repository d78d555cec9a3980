//! What a session will take of memory, known before anything is loaded.

use crate::limits::{MemoryLimit, available, kib, memory_limit};
use reattention::methods::Method;
use reattention::{KvDtype, ModelShape, Store};
use reattention_kernels::{Device, KvRoom};
use reattention_model::{Config, Scratch, device_scratch_bytes, loss_bytes};
use serde::Serialize;

/// Memory a session takes, in bytes, part by part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Tokens planned for: prompt and answer.
    pub tokens: usize,
    /// Weights as they are held.
    pub weights: usize,
    /// Keys and values of all tokens kept.
    pub kv: usize,
    /// What the method holds of these tokens besides: an index, for instance.
    pub extra: usize,
    /// Hidden states, votes and logits of one step.
    pub scratch: usize,
    /// Program, tokenizer and the prompt's own bookkeeping.
    pub overhead: usize,
    /// All of it.
    pub total: usize,
    /// Memory the system can give, if it tells.
    pub available: Option<usize>,
    /// The control group that limits it, if one does.
    pub limit: Option<MemoryLimit>,
    /// Keys and values of one token.
    pub kv_per_token: usize,
    /// Disk space that keys and values take; not part of the total.
    pub disk: usize,
    /// Memory of the device that computes, if one does; not part of the total.
    pub device: Option<DevicePlan>,
}

/// Memory a session takes on a device, in bytes, part by part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DevicePlan {
    /// The device.
    pub name: String,
    /// Weights.
    pub weights: usize,
    /// Keys and values.
    pub kv: usize,
    /// How much of them goes to the host's memory when the device is full.
    pub movable: usize,
    /// Hidden states of one step, and what kernels work in.
    pub scratch: usize,
    /// All of it.
    pub total: usize,
    /// Free memory of the device, if it tells.
    pub available: Option<usize>,
}

/// The plan does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tokens} tokens need {}{place} ({} of it keys and values at {} a token), but {} is available{limit}{advice}",
    human(*.total), human(*.kv), human(*.kv_per_token), human(*.available))]
pub struct OutOfMemory {
    tokens: usize,
    place: String,
    total: usize,
    kv: usize,
    kv_per_token: usize,
    available: usize,
    limit: String,
    advice: String,
}

impl MemoryPlan {
    /// The plan for `tokens` tokens under a method, with `weights` bytes of weights and `known` bytes of memory already
    /// accounted for by the caller (text, tokens and the like).
    pub fn new(
        config: &Config,
        method: &dyn Method,
        kv: KvDtype,
        weights: usize,
        tokens: usize,
        known: usize,
    ) -> Self {
        let shape = config.shape();
        let step = method.largest_step().min(tokens.max(1));
        let scratch =
            Scratch::planned_bytes(config, step) + packed_bytes(&shape, step) + 2 * 4 * config.vocab_size;
        let losses = if method.wants_losses() { loss_bytes(config) } else { 0 };
        let scratch = scratch.saturating_add(method.step_bytes(step)).saturating_add(losses);
        let extra = method.extra_bytes(tokens);
        let kv_bytes = Store::planned_bytes(&shape, kv, tokens, method.kept(tokens), step);
        let bookkeeping = tokens.saturating_mul(PER_TOKEN);
        let overhead = PROGRAM.saturating_add(known).saturating_add(bookkeeping);
        Self {
            tokens,
            weights,
            kv: kv_bytes,
            extra,
            scratch,
            overhead,
            total: [weights, kv_bytes, extra, scratch, overhead].into_iter().fold(0, usize::saturating_add),
            available: available(),
            limit: memory_limit(),
            kv_per_token: Store::bytes_per_token(&shape, kv),
            disk: Store::planned_disk_bytes(&shape, kv, method.on_disk(tokens)),
            device: None,
        }
    }

    /// The plan with the work done on a device that takes `weights` bytes for the weights: keys and values are there, if the
    /// method suits it.
    pub fn on(
        mut self,
        device: &dyn Device,
        weights: usize,
        config: &Config,
        method: &dyn Method,
        kv: KvDtype,
    ) -> Self {
        let mut room = KvRoom::default();
        if method.suits_device() {
            room = device.kv_room(Store::on_device_shape(&config.shape(), kv), method.kept(self.tokens));
            // No index either: the method searches what the device keeps.
            let rest = self.total.saturating_sub(self.kv).saturating_sub(self.extra);
            self.total = rest.saturating_add(room.host);
            (self.kv, self.extra) = (room.host, 0);
        }
        let step = method.largest_step().min(self.tokens.max(1));
        let scratch = device_scratch_bytes(config, step).saturating_add(device.work_bytes(self.tokens));
        let total = [weights, room.device, scratch].into_iter().fold(0, usize::saturating_add);
        let available = device.free_memory().ok();
        let (name, kv, movable) = (device.name(), room.device, room.movable);
        // What does not fit there comes here.
        let moved = total.saturating_sub(available.unwrap_or(usize::MAX)).min(movable);
        self.kv = self.kv.saturating_add(moved);
        self.total = self.total.saturating_add(moved);
        self.device = Some(DevicePlan { name, weights, kv, movable, scratch, total, available });
        self
    }

    /// Refuses a plan that does not fit, and says what would.
    ///
    /// # Errors
    /// When more is needed than is available.
    pub fn check(&self) -> Result<(), OutOfMemory> {
        self.device.as_ref().map_or(Ok(()), |device| self.check_device(device))?;
        let Some(available) = self.available.filter(|a| self.total > *a) else { return Ok(()) };
        let per_token = self.kv_per_token + self.extra / self.tokens.max(1) + PER_TOKEN;
        let fixed = self.weights + self.scratch + PROGRAM;
        let advice = match available.checked_sub(fixed).map(|rest| rest / per_token) {
            Some(fit) if fit > 0 => {
                format!("; about {fit} tokens fit, or choose a method that keeps less")
            }
            _ => "; the model alone does not fit: use a smaller or more strongly quantised one".to_string(),
        };
        Err(OutOfMemory {
            tokens: self.tokens,
            place: String::new(),
            total: self.total,
            kv: self.kv,
            kv_per_token: self.kv_per_token,
            available,
            limit: self.limit_note(),
            advice,
        })
    }

    fn check_device(&self, device: &DevicePlan) -> Result<(), OutOfMemory> {
        let needed = device.total - device.movable;
        let Some(available) = device.available.filter(|a| needed > *a) else { return Ok(()) };
        let per_token = (device.kv - device.movable) / self.tokens.max(1);
        let rest = available.checked_sub(device.weights.saturating_add(device.scratch));
        let advice = match rest.and_then(|rest| rest.checked_div(per_token)) {
            Some(fit) if fit > 0 => {
                format!("; about {fit} tokens fit, or more with --kv-offload values or --kv-offload old")
            }
            _ => "; weights and what a step works in do not fit: use a smaller model or --device cpu"
                .to_string(),
        };
        Err(OutOfMemory {
            tokens: self.tokens,
            place: format!(" on {}", device.name),
            total: needed,
            kv: device.kv - device.movable,
            kv_per_token: per_token,
            available,
            limit: String::new(),
            advice,
        })
    }

    /// What is to be said of a limit behind the memory available.
    fn limit_note(&self) -> String {
        let note = |l: &MemoryLimit| format!(" (limited to {} by {})", human(l.limit), l.group.display());
        self.limit.as_ref().map_or(String::new(), note)
    }

    /// The plan in one line.
    pub fn line(&self) -> String {
        let available = self
            .available
            .map_or(String::new(), |a| format!(" of {} available{}", human(a), self.limit_note()));
        let extra = if self.extra > 0 { format!(" + index {}", human(self.extra)) } else { String::new() };
        let disk = if self.disk > 0 {
            format!("; besides {} of disk in {}", human(self.disk), std::env::temp_dir().display())
        } else {
            String::new()
        };
        let device = self.device.as_ref().map_or(String::new(), |d| {
            let free = d.available.map_or(String::new(), |a| format!(" of {} free", human(a)));
            let movable = if d.movable > 0 { ", some of which may move to the host" } else { "" };
            format!(
                "; on {}: weights {} + keys and values {}{movable} + scratch {} = {}{free}",
                d.name,
                human(d.weights),
                human(d.kv),
                human(d.scratch),
                human(d.total)
            )
        });
        format!(
            "memory plan for {} tokens: weights {} + keys and values {} ({} a token){extra} + scratch {} + overhead {} = {}{available}{disk}{device}",
            self.tokens,
            human(self.weights),
            human(self.kv),
            human(self.kv_per_token),
            human(self.scratch),
            human(self.overhead),
            human(self.total)
        )
    }
}

/// Code, tokenizer, thread stacks and allocator of the program itself, as measured on `reattn bench`.
const PROGRAM: usize = 15 << 20;

/// Ids, byte ranges and origins of a prompt's token, in the prompt and while it is put together.
const PER_TOKEN: usize = 112;

/// Queries of one step as kernels pack them, and their weights.
fn packed_bytes(shape: &ModelShape, step: usize) -> usize {
    4 * step * shape.n_heads * shape.head_dim
}

/// Bytes as people read them.
pub fn human(bytes: usize) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.2} GiB")
}

/// The most memory this process has held so far, in bytes; `None` where the system does not tell.
pub fn peak_rss() -> Option<usize> {
    kib(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Lets [`peak_rss`] start again from what the process holds now. Says whether the system can do that; if not, the peak
/// stays that of the whole run.
pub fn reset_peak_rss() -> bool {
    // proc(5): 5 resets the high-water mark of the resident set.
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(human(17), "17 B");
        assert_eq!(human(12 * 1024), "12.0 KiB");
        assert_eq!(human(3 << 30), "3.00 GiB");
    }

    #[test]
    fn a_plan_that_does_not_fit_says_what_would() {
        let plan = MemoryPlan {
            tokens: 1_000_000,
            weights: 100 << 20,
            kv: 10_000_000_000,
            extra: 0,
            scratch: 1 << 20,
            overhead: PROGRAM + 1_000_000 * PER_TOKEN,
            total: (101 << 20) + 10_000_000_000 + PROGRAM + 1_000_000 * PER_TOKEN,
            available: Some((101 << 20) + PROGRAM + 500_000 * (10_000 + PER_TOKEN)),
            kv_per_token: 10_000,
            disk: 0,
            device: None,
            limit: None,
        };
        let message = plan.check().unwrap_err().to_string();
        assert!(message.contains("about 500000 tokens fit"), "{message}");
        let limit = MemoryLimit { group: "/sys/fs/cgroup/job".into(), limit: 1 << 30, left: 50 };
        let limited = MemoryPlan { limit: Some(limit), available: Some(50), ..plan.clone() };
        let says = "50 B is available (limited to 1.00 GiB by /sys/fs/cgroup/job)";
        assert!(limited.check().unwrap_err().to_string().contains(says), "{}", limited.line());
        assert!(limited.line().contains(&says.replace("is ", "")), "{}", limited.line());
        assert!(MemoryPlan { available: Some(20_000_000_000), ..plan.clone() }.check().is_ok());
        let tiny = MemoryPlan { available: Some(50), ..plan }.check().unwrap_err().to_string();
        assert!(tiny.contains("the model alone does not fit"), "{tiny}");
    }
}
