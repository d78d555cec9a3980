//! Where the time of a prefill and of decoding went, part by part.

use crate::common::print;
use crate::failure::Failure;
use reattention_kernels::profile::{Part, Profile, Spent};
use serde_json::{Value, json};

/// What was spent on a prefill and on decoding after it.
pub(super) struct Phases {
    pub(super) prefill: Profile,
    pub(super) decode: Profile,
}

impl Phases {
    fn each(&self) -> [(&'static str, &Profile); 2] {
        [("prefill", &self.prefill), ("decode", &self.decode)]
    }

    /// A table of the parts, each with its share and how fast it went.
    pub(super) fn print(&self, title: &str) -> Result<(), Failure> {
        for (phase, profile) in self.each() {
            print(format_args!("\n| {title}, {phase} | seconds | share | calls | GFLOP/s | GB/s |"))?;
            print("|---|--:|--:|--:|--:|--:|")?;
            let all = profile.total().as_secs_f64();
            for (part, spent) in profile.parts().filter(|(_, s)| s.calls > 0 || !s.time.is_zero()) {
                let [flops, bytes] = rates(spent).map(|r| r.map_or("".into(), |r| format!("{r:.1}")));
                print(format_args!(
                    "| {} | {:.3} | {:.1} % | {} | {flops} | {bytes} |",
                    part.name(),
                    spent.time.as_secs_f64(),
                    100.0 * share(spent, all),
                    spent.calls
                ))?;
            }
            print(format_args!("| all | {all:.3} | | | | |"))?;
        }
        Ok(())
    }

    /// One object a phase and part; `common` goes into each.
    pub(super) fn json(&self, common: &Value) -> Vec<Value> {
        let of = |phase: &str, part: Part, spent: &Spent, all: f64| {
            let mut row = common.clone();
            let [gflop_s, gb_s] = rates(spent);
            let own = json!({
                "phase": phase, "part": part.name(), "seconds": spent.time.as_secs_f64(),
                "share": share(spent, all), "calls": spent.calls, "gflop_s": gflop_s, "gb_s": gb_s,
            });
            if let (Some(row), Value::Object(own)) = (row.as_object_mut(), own) {
                row.extend(own);
            }
            row
        };
        self.each()
            .into_iter()
            .flat_map(|(phase, profile)| {
                let all = profile.total().as_secs_f64();
                profile.parts().map(move |(part, spent)| (phase, part, spent, all))
            })
            .map(|(phase, part, spent, all)| of(phase, part, spent, all))
            .collect()
    }
}

fn share(spent: &Spent, all: f64) -> f64 {
    if all > 0.0 { spent.time.as_secs_f64() / all } else { 0.0 }
}

/// GFLOP/s and GB/s, where they say something.
fn rates(spent: &Spent) -> [Option<f64>; 2] {
    let seconds = spent.time.as_secs_f64();
    [spent.flops, spent.bytes].map(|work| (work > 0.0 && seconds > 0.0).then(|| work / seconds / 1e9))
}
