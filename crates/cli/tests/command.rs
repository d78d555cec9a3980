//! The command as a person calls it: what it prints, where, and with which exit code.

use assert_cmd::Command;
use serde_json::Value;
use std::path::Path;

fn reattn(args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("reattn").unwrap().args(args).assert()
}

fn stdout(args: &[&str]) -> String {
    String::from_utf8(reattn(args).success().get_output().stdout.clone()).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

/// Notes of 300 lines, the fact on line 214.
fn notes(dir: &Path) -> String {
    let line = |i: usize| match i {
        214 => "The locker code of Ada Winter is 90417. The rest of the day was quiet.\n".to_string(),
        i => format!("Line {i} of the notes: the weather was fair and nothing happened.\n"),
    };
    let path = dir.join("notes.txt");
    std::fs::write(&path, (1..=300).map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

#[test]
fn demo_finds_every_fact() {
    let text = stdout(&["demo", "--tokens", "8k"]);
    assert_eq!(text.lines().last(), Some("found 5 of 5"));
    assert_eq!(text.matches("   right").count(), 5);
    assert!(text.contains("looked at line") && text.contains("tokens/s") && text.contains("peak memory"));
}

#[test]
fn demo_fails_when_a_fact_is_missed() {
    let assert = reattn(&["demo", "--tokens", "4k", "--method", "streaming-llm", "-q"]).code(1);
    let text = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    let last = text.lines().last().unwrap().to_string();
    assert!(last.starts_with("found ") && last.ends_with(" of 5") && last != "found 5 of 5", "{last}");
}

#[test]
fn ask_answers_with_evidence_and_honest_counts() {
    let dir = tempfile::tempdir().unwrap();
    let file = notes(dir.path());
    let question = "What is the locker code of Ada Winter?";
    let plain = reattn(&["ask", "--context", &file, question]).success();
    assert_eq!(
        String::from_utf8_lossy(&plain.get_output().stdout),
        "The locker code of Ada Winter is 90417.\n"
    );
    let log = String::from_utf8_lossy(&plain.get_output().stderr).to_string();
    assert!(log.contains("memory plan") && log.contains("notes.txt:214"), "{log}");

    let answer = json(&["ask", "--json", "-q", "--context", &file, question]);
    assert_eq!(answer["answer"], "The locker code of Ada Winter is 90417.");
    let tokens = &answer["tokens"];
    assert!(tokens["prompt"].as_u64() > tokens["context"].as_u64());
    assert!(tokens["context"].as_u64() > Some(4000));
    assert!(tokens["attended_max"].as_u64() <= Some(512) && tokens["generated"].as_u64() > Some(5));
    for key in ["load_s", "prefill_s", "prefill_tok_s", "decode_s", "decode_tok_s"] {
        assert!(answer["timing"][key].as_f64().unwrap() >= 0.0, "{key}");
    }
    assert_eq!(answer["method"]["name"], "reattention");
    assert_eq!(answer["method"]["params"]["local"], 128);
    assert!(answer["peak_rss_bytes"].as_u64() > Some(1 << 20));
    let evidence = &answer["evidence"][0];
    assert_eq!(evidence["line"], 214);
    let text = std::fs::read_to_string(&file).unwrap();
    let byte = |key: &str| evidence[key].as_u64().unwrap() as usize;
    assert_eq!(evidence["text"], text[byte("start_byte")..byte("end_byte")]);
}

#[test]
fn ask_reads_several_files_and_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let file = notes(dir.path());
    let other = dir.path().join("other.txt");
    std::fs::write(&other, "The badge number of Otto Crane is 31337. Nothing else is written here.").unwrap();
    let other = other.display().to_string();
    let question = "What is the badge number of Otto Crane?";
    let answer = json(&["ask", "--json", "-q", "--context", &file, &other, question]);
    assert!(answer["answer"].as_str().unwrap().contains("31337"), "{answer}");
    assert_eq!(answer["evidence"][0]["source"], Value::String(other.clone()));
    // Short enough for full attention: evidence does not depend on selection.
    let piped = json(&["ask", "--json", "-q", "--context", &other, question]);
    assert!(piped["evidence"][0]["text"].as_str().unwrap().contains("31337"), "{piped}");
    let piped = Command::cargo_bin("reattn")
        .unwrap()
        .args(["ask", "-q", "--context", "-", question])
        .write_stdin("The badge number of Otto Crane is 31337.")
        .assert()
        .success();
    assert!(String::from_utf8_lossy(&piped.get_output().stdout).contains("31337"));
}

#[test]
fn bad_input_is_named_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = notes(dir.path());
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let binary = path("binary.dat", &[b'a', 0xFF, 0xFE]);
    let empty = path("empty.txt", b" \n");
    let bad_gguf = path("bad.gguf", b"GGUF\x03\0\0\0\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F");
    let folder = dir.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let mamba = r#"{"architectures":["MambaForCausalLM"],"model_type":"mamba"}"#;
    std::fs::write(folder.join("config.json"), mamba).unwrap();
    let folder = folder.display().to_string();
    let ask =
        |extra: &[&'static str]| [&["ask", "--context", &file, "What is it?"], extra].concat().join("\t");
    let of = |args: &[&str]| args.join("\t");
    let cases = [
        (of(&["ask", "--context", "no-such-file.txt", "Why?"]), "no-such-file.txt"),
        (of(&["ask", "--context", &binary, "Why?"]), "UTF-16 text (byte 1 is 0xff)"),
        (of(&["ask", "--context", &empty, "Why?"]), "empty"),
        (of(&["ask", "--context", &file]), "no question"),
        (of(&["ask", "--context", &file, " "]), "the question is empty"),
        (of(&["ask", "Why?"]), "no --context"),
        (ask(&["--method", "magic"]), "unknown method `magic`; known are reattention, full,"),
        (ask(&["--set", "chunk=200"]), "chunk=200 must not exceed 128"),
        (ask(&["--chunk", "200"]), "chunk=200 must not exceed 128"),
        (ask(&["--set", "span=0"]), "span=0"),
        (ask(&["--set", "top_k=0"]), "top_k=0"),
        (ask(&["--set", "colour=red"]), "no parameter `colour`; it has global"),
        (ask(&["--set", "chunk"]), "`chunk` is not of the form key=value"),
        (ask(&["--rope", "warp"]), "unknown rope scaling `warp`"),
        (ask(&["--rope", "clex"]), "trained weights of a CLEX checkpoint"),
        (ask(&["--method", "ms-poe", "--rope", "dynamic"]), "follow the length"),
        (of(&["eval", "needle", "--method", "ms-poe", "--rope", "dynamic"]), "follow the length"),
        (ask(&["--temperature=-1"]), "temperature"),
        (ask(&["--top-p", "0"]), "--top-p is 0"),
        (ask(&["--threads", "0"]), "--threads must be at least 1"),
        (ask(&["--kv", "int3"]), "int3"),
        (ask(&["--model", "no-such-model"]), "no-such-model"),
        (of(&["ask", "--context", &file, "Why?", "--model", &bad_gguf]), "bad.gguf"),
        (of(&["ask", "--context", &file, "Why?", "--model", &folder]), "MambaForCausalLM"),
        (of(&["eval", "needle", "--lengths", "4x"]), "4x"),
        (of(&["eval", "needle", "--depths", "150"]), "150"),
        (of(&["eval", "perplexity", "--data", "missing.txt"]), "missing.txt"),
        (of(&["demo", "--tokens", "100"]), "tokens"),
        (of(&["bench", "--method", "full", "--set", "top_k=3"]), "top_k"),
        (of(&["bench", "--lengths", "900m"]), "available"),
        (of(&["bench", "--lengths", "600", "--decode", "18446744073709551615"]), "available"),
        (of(&["demo", "--tokens", "900m"]), "available"),
        (of(&["demo", "--facts", "0"]), "--facts must be at least 1"),
        (of(&["demo", "--set", "question_alone=false"]), "use ask or eval"),
        (ask(&["--max-new-tokens", "18446744073709551615"]), "available"),
        (ask(&["--method", "infllm", "--max-new-tokens", "18446744073709551615"]), "available"),
        (ask(&["--threads", "5000"]), "at most 1024"),
        (
            ask(&["--method", "streaming-llm", "--chunk", "18446744073709551615"]),
            "chunk=18446744073709551615",
        ),
        (ask(&["--set", "clip=none", "--set", "local=900"]), "exceeds the model's window"),
        (of(&["ask", "--context", &file, "Why?", "--stop", ""]), "--stop is empty"),
        (of(&["bench", "--kernels", "--only", "warp-drive"]), "warp-drive"),
        (of(&["eval", "needle", "--lengths", "512", "--out", &file]), "notes.txt"),
        (of(&["eval", "needle", "--lengths", "512,20"]), "tokens"),
        (of(&["eval", "selection", "--arm", "magic"]), "selector=magic"),
        (of(&["eval", "selection", "--arm", "a:top_k"]), "key=value"),
        (of(&["eval", "selection", "--arm", "top_k=3"]), "NAME:key=value"),
        (of(&["eval", "selection", "--arm", "a:method=full,top_k=3"]), "no parameter `top_k`"),
        (of(&["eval", "selection", "--arm", "a:method=magic"]), "unknown method `magic`"),
        (of(&["eval", "selection", "--arm", "exact", "--arm", "b:selector=exact"]), "arm `exact`"),
        (of(&["eval", "selection", "--arm", "exact", "--arm", "exact:top_k=2"]), "arm `exact`"),
        (of(&["eval", "selection", "--arm", "a:question_alone=false"]), "arm `a` reads"),
        (of(&["eval", "selection", "--lengths", "200"]), "longer text"),
        (of(&["eval", "selection", "--tasks", "poetry"]), "poetry"),
        (of(&["eval", "selection", "--facts", "0"]), "from 1"),
    ];
    for (args, says) in cases {
        let assert = Command::cargo_bin("reattn").unwrap().args(args.split('\t')).assert().code(2);
        let message = String::from_utf8_lossy(&assert.get_output().stderr).to_string();
        assert!(message.contains(says), "{args:?}: {message}");
        assert!(
            args.contains("--kernels") || assert.get_output().stdout.is_empty(),
            "{args:?} wrote to stdout"
        );
        assert!(!message.contains("panicked"), "{args:?}: {message}");
    }
}

#[test]
fn methods_and_inspect_describe() {
    let methods = json(&["methods", "--json"]);
    let names: Vec<&str> =
        methods["methods"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    let known: Vec<&str> = reattention::methods::specs().map(|s| s.name).collect();
    assert_eq!(names, known);
    assert!(
        methods["ropes"].as_array().unwrap().iter().any(|r| r["name"] == "clex" && r["params"].is_array())
    );
    let text = stdout(&["methods"]);
    assert!(text.contains("arXiv 2407.15176") && text.contains("arXiv 2310.16450"));
    let model = json(&["inspect", "--json"]);
    assert_eq!((&model["family"], &model["window"]), (&"llama".into(), &512.into()));
    assert_eq!(model["kv_bytes_per_token"]["bf16"], 1024);
    assert!(stdout(&["inspect"]).contains("512 positions"));
}

#[test]
fn evaluations_write_what_they_print() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().display().to_string();
    let needle =
        ["eval", "needle", "--lengths", "512,2k", "--depths", "10,90", "--samples", "1", "--json", "-q"];
    let report = json(&[&needle[..], &["--method", "reattention,full", "--out", &out]].concat());
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 8);
    for cell in cells {
        let expected = u64::from(cell["method"] == "reattention" || cell["length"] == 512);
        assert_eq!(cell["correct"].as_u64(), Some(expected), "{cell}");
        assert!(cell["seconds"].as_f64() > Some(0.0) && cell["peak_rss_bytes"].as_u64() > Some(0));
    }
    assert_eq!(report["rows"].as_array().unwrap().len(), 8);
    for name in ["run.json", "rows.jsonl", "results.json", "table.md", "figures/needle-single-depth.svg"] {
        assert!(dir.path().join(name).exists(), "{name}");
    }
    let report =
        json(&["eval", "perplexity", "--tokens", "4k", "--method", "streaming-llm,full", "--json", "-q"]);
    let buckets = report["buckets"].as_array().unwrap();
    assert_eq!(buckets.iter().map(|b| b["tokens"].as_u64().unwrap()).sum::<u64>(), 2 * 4095);
    let of = |method: &str| -> Vec<f64> {
        buckets.iter().filter(|b| b["method"] == method).map(|b| b["perplexity"].as_f64().unwrap()).collect()
    };
    let (flat, broken) = (of("streaming-llm"), of("full"));
    assert!(flat[3] < 1.3 * flat[0] && broken[3] > 2.0 * broken[0], "{flat:?} {broken:?}");
}

#[test]
fn selection_compares_arms_with_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().display().to_string();
    let common = ["eval", "selection", "--lengths", "1k", "--facts", "5", "--set", "top_k=2", "--json", "-q"];
    let arms = ["--arm", "exact", "--arm", "window:prefill=window", "--arm", "dense:method=full"];
    let report = json(&[&common[..], &arms, &["--out", &out]].concat());
    assert_eq!(report["arms"], serde_json::json!(["exact", "window", "dense"]));
    let params = |i: usize| &report["methods"][i]["params"];
    assert_eq!((&params(0)["top_k"], &params(1)["top_k"]), (&2.into(), &2.into()));
    assert_eq!((&params(0)["prefill"], &params(1)["prefill"]), (&"select".into(), &"window".into()));
    assert_eq!(report["methods"][2]["name"], "full");
    let of = |key: &str, arm: &str| -> Vec<serde_json::Value> {
        report[key].as_array().unwrap().iter().filter(|r| r["arm"] == arm).cloned().collect()
    };
    assert!(of("rows", "exact").iter().all(|r| r["correct"].is_boolean() && r.get("kl_first").is_none()));
    assert!(of("rows", "window").iter().all(|r| r["kl_first"].as_f64() < Some(0.5) && r["mass"].is_number()));
    assert!(of("totals", "dense")[0]["kl_first"].as_f64() > Some(0.5));
    assert!(of("buckets", "dense")[1]["loss_delta"].as_f64() > Some(0.1));
    assert_eq!(of("cells", "window").len(), 2 * 5 + 1);
    assert!(of("runs", "window")[0]["peak_rss_bytes"].as_u64() > Some(0));
    let table = std::fs::read_to_string(dir.path().join("selection.md")).unwrap();
    assert!(table.contains("near-duplicates") && dir.path().join("selection.json").exists());
}

#[test]
fn bench_measures_every_method_on_random_models_of_both_formats() {
    use reattention_model::synth::{DenseType, GgufType, Shape, write_gguf, write_hugging_face};
    let dir = tempfile::tempdir().unwrap();
    // Ms-PoE leaves the first two layers alone and refuses a model that has no more.
    let shape = Shape { n_layers: 3, ..Shape::tiny("qwen2") };
    let (folder, file) = (dir.path().join("hf"), dir.path().join("tiny.gguf"));
    write_hugging_face(&folder, &shape, DenseType::Bf16, 1, None).unwrap();
    write_gguf(&file, &shape, GgufType::Q8_0, 1).unwrap();
    for model in [folder, file] {
        let model = model.display().to_string();
        let bench = ["bench", "--model", &model, "--lengths", "300", "--decode", "5", "--method", "all"];
        let report = json(&[&bench[..], &["--json", "-q"]].concat());
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), reattention::methods::specs().count());
        for row in rows {
            assert!(row["prefill_tok_s"].as_f64() > Some(0.0) && row["decode"] == 5, "{row}");
        }
    }
}

#[test]
fn a_profile_adds_up_to_the_time_that_passed() {
    let bench = ["bench", "--lengths", "2k,6k", "--decode", "20", "--profile", "--json", "-q"];
    let report = json(&bench);
    let parts = report["profile"].as_array().unwrap();
    for row in report["rows"].as_array().unwrap() {
        for (phase, wall) in [("prefill", "prefill_s"), ("decode", "decode_s")] {
            let of: Vec<&Value> =
                parts.iter().filter(|p| p["length"] == row["length"] && p["phase"] == phase).collect();
            let sum = |key: &str| of.iter().map(|p| p[key].as_f64().unwrap()).sum::<f64>();
            let wall = row[wall].as_f64().unwrap();
            // A busy machine may keep it waiting between what is timed and what is charged, though never for nothing: that
            // every moment is charged once is tested where it is charged.
            let apart = (sum("seconds") - wall).abs();
            assert!(apart < 0.25 * wall + 0.1, "{phase}: {} of {wall} s", sum("seconds"));
            assert!((sum("share") - 1.0).abs() < 1e-9);
            for part in ["linear, attention", "linear, MLP", "linear, head", "scoring", "selection", "gather"]
            {
                let found = of.iter().find(|p| p["part"] == part).unwrap();
                assert!(
                    found["seconds"].as_f64() > Some(0.0) && found["calls"].as_u64() > Some(0),
                    "{found}"
                );
            }
        }
    }
}

#[test]
fn memory_stays_within_a_tenth_of_its_plan() {
    let bench = ["bench", "--lengths", "128k", "--decode", "4", "--set", "prefill=window", "--json", "-q"];
    let row = &json(&bench)["rows"][0];
    let (peak, plan) =
        (row["peak_rss_bytes"].as_f64().unwrap(), row["memory_plan"]["total"].as_f64().unwrap());
    // A system short of memory takes pages away that are not in use.
    assert!((0.75..1.1).contains(&(peak / plan)), "{peak} bytes of {plan} planned");
}
