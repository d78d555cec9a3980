//! The report of a small run: its files, and the page as a browser shows it, with all scripts run.
//!
//! The browser is a Chromium found as `$CHROME` or in the path; without one the page's text alone is checked.

#[allow(unreachable_pub, reason = "a library has it, too")]
#[path = "../../cuda-emulator/src/skipped.rs"]
mod skipped;

use reattention_eval::report::{self, ReportError, Written};
use reattention_eval::run::{Bucket, Row, Seconds, Tokens, by_depth};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LENGTHS: [usize; 2] = [512, 4096];
const DEPTHS: [f64; 3] = [0.0, 50.0, 100.0];
const METHODS: [&str; 2] = ["full", "reattention"];
/// What a model may say to break a page: `full` says these in turn where it is wrong.
const HOSTILE: [&str; 3] = [
    "</script><script>document.title='owned'</script>",
    "<img src=http://example.invalid/x onerror=\"document.title='owned'\">",
    "null \u{0}, turned \u{202e}txet, <!--<script>",
];

/// `full` is wrong at 4096 tokens, but refuses its last depth there; `reattention` is always right.
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut wrong = 0;
    for (length, depth, method) in LENGTHS
        .iter()
        .flat_map(|l| DEPTHS.iter().map(move |d| (*l, *d)))
        .flat_map(|(l, d)| METHODS.map(|m| (l, d, m)))
    {
        let code = format!("{}", 10_000 + length + depth as usize);
        let is_wrong = method == "full" && length == 4096;
        let mut row = Row {
            suite: "needle".into(),
            task: "single".into(),
            method: method.into(),
            length: Some(length),
            depth: Some(depth),
            id: format!("1-{depth}"),
            tail: "\nQuestion: What is the locker code of Ada Winter?\nAnswer:".into(),
            expected: code.clone().into(),
            prediction: format!(" The locker code is {code}."),
            score: Some(1.0),
            tokens: Tokens { prompt: length + 20, context: length, generated: 9, ..Tokens::default() },
            seconds: Seconds { read: length as f64 / 1000.0, answer: 0.1 },
            peak_rss_bytes: Some(64 << 20),
            evidence: serde_json::from_value(json!([{
                "source": "haystack", "start_byte": 0, "end_byte": 40, "line": 7, "weight": 0.625,
                "text": format!("The locker code of Ada Winter is {code}."),
            }]))
            .unwrap(),
            ..Row::default()
        };
        if is_wrong && depth == 100.0 {
            row = Row {
                score: None,
                refused: Some("longer than the window".into()),
                prediction: String::new(),
                ..row
            };
        } else if is_wrong {
            row = Row { score: Some(0.0), prediction: HOSTILE[wrong % HOSTILE.len()].into(), ..row };
            wrong += 1;
        }
        rows.push(row);
    }
    let loss = |method: &str, per_token: f64| Row {
        suite: "perplexity".into(),
        task: "text".into(),
        method: method.into(),
        id: "prose".into(),
        prediction: HOSTILE[2].into(),
        buckets: vec![
            Bucket { from: 0, to: 512, tokens: 511, loss: 511.0 },
            Bucket { from: 512, to: 1024, tokens: 512, loss: 512.0 * per_token },
        ],
        ..Row::default()
    };
    rows.extend([loss("full", 3.0), loss("reattention", 1.1)]);
    rows
}

/// A run's folder as `reattn eval` leaves it, with the first `done` rows.
fn folder(dir: &Path, done: usize) {
    let suite = |name: &str, task: &str, rows: usize| {
        json!({
            "name": name, "version": 3, "options": { "lengths": LENGTHS, "note": "a<b" }, "tasks": [task], "rows": rows, "readings": 2,
            "problems": [{ "file": "a.jsonl", "line": 9, "problem": "no field `answers`" }],
        })
    };
    let arm = |name: &str| json!({ "name": name, "arm": name, "params": { "span": 32 }, "kv": "bf16" });
    let manifest = json!({
        "suites": [suite("needle", "single", 6), suite("perplexity", "text", 1)], "arms": METHODS.map(arm),
        "model": { "name": "tiny <model>", "fingerprint": "0123abcd" }, "seed": 41, "version": "0.1.0", "jobs": 1,
        "command": "reattn eval needle,perplexity",
    });
    std::fs::write(dir.join("run.json"), manifest.to_string()).unwrap();
    let rows = rows();
    let lines: Vec<String> = rows[..done].iter().map(|r| serde_json::to_string(r).unwrap() + "\n").collect();
    std::fs::write(dir.join("rows.jsonl"), lines.concat()).unwrap();
    if done == rows.len() {
        let asked: Vec<&Row> = rows.iter().filter(|r| r.suite == "needle").collect();
        let mut table = serde_json::to_value(by_depth("needle", &asked)).unwrap();
        table["suite"] = "needle".into();
        let results = json!({ "suite": "needle,perplexity", "tables": [table] });
        std::fs::write(dir.join("results.json"), results.to_string()).unwrap();
    }
}

fn written(dir: &Path) -> (Written, String, String) {
    let written = report::write(dir).unwrap();
    let read = |file: &Path| std::fs::read_to_string(file).unwrap();
    let (page, markdown) = (read(&written.page), read(&written.markdown));
    (written, page, markdown)
}

#[test]
fn the_page_holds_the_run_and_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), rows().len());
    let (written, page, markdown) = written(dir.path());
    assert_eq!((written.rows, written.total, written.browsable), (14, Some(14), 14));
    assert_eq!(written.page_bytes, page.len());
    // The line of `full` at 4096 tokens in the results' own table, and its perplexity where results have no table.
    for numbers in [&["full", "4096", "0.00", "0.00", "-"][..], &["full", "2.72", "20.09"]] {
        let cells = |line: &str| {
            line.trim_matches(['|', ' ']).split('|').map(|c| c.trim().to_string()).collect::<Vec<_>>()
        };
        assert!(
            markdown
                .lines()
                .any(|l| cells(l).iter().zip(numbers).filter(|(a, b)| a == *b).count() == numbers.len()),
            "{markdown}"
        );
        let row = numbers.iter().map(|n| format!(">{n}</t")).collect::<Vec<_>>();
        assert!(
            page.lines().any(|l| row.iter().all(|n| l.contains(n))),
            "{numbers:?} not in a line of the page"
        );
    }
    for said in [
        "tiny &lt;model&gt;",
        "0123abcd",
        "reattn eval needle,perplexity",
        "span=32",
        "note=a&lt;b",
        "a.jsonl:9: no field `answers`",
    ] {
        assert!(page.contains(said), "{said}");
    }
    assert!(!page.contains("Unfinished"));
    let names: Vec<String> =
        written.figures.iter().map(|f| f.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(
        names,
        ["needle-single-depth.svg", "needle-single-length.svg", "perplexity-text-position.svg"]
    );
    for file in &written.figures {
        let svg = std::fs::read_to_string(file).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && !svg.contains("href"), "{svg}");
        assert!(markdown.contains(&format!("](figures/{})", file.file_name().unwrap().to_string_lossy())));
    }
    let attributes = ["src=\"", "href=\"", "url(", "@import"];
    for (attribute, at) in attributes.iter().flat_map(|a| page.match_indices(a).map(move |(at, _)| (a, at))) {
        let value = &page[at + attribute.len()..];
        assert!(value.starts_with('#') || value.starts_with("figures/"), "{attribute}{}", &value[..40]);
    }
    assert!(page.contains("Content-Security-Policy\" content=\"default-src 'none'"));
    // Elements that the page itself has, and none that a model wrote.
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2));
    assert!(!page.contains("<img") && !page.contains('\0'));
}

#[test]
fn an_unfinished_run_is_reported_as_far_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), 9);
    // Of an earlier start, say: it does not belong to these rows.
    std::fs::write(
        dir.path().join("results.json"),
        "{\"tables\": [{\"suite\": \"needle\", \"title\": \"stale\", \"head\": [], \"rows\": []}]}",
    )
    .unwrap();
    let (written, page, markdown) = written(dir.path());
    assert_eq!((written.rows, written.total), (9, Some(14)));
    for text in [&page, &markdown] {
        assert!(
            text.contains("Unfinished: 9 of 14 rows") && text.contains("9 of 12") && text.contains("0 of 2"),
            "{text}"
        );
        assert!(!text.contains("stale"));
    }
}

#[test]
fn what_is_no_run_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = report::write(dir.path()).unwrap_err();
    assert!(matches!(error, ReportError::Run(_)) && error.to_string().contains("run.json"), "{error}");
    folder(dir.path(), 14);
    std::fs::write(dir.path().join("results.json"), "{").unwrap();
    let error = report::write(dir.path()).unwrap_err();
    assert!(matches!(error, ReportError::Run(_)) && error.to_string().contains("results.json:1"), "{error}");
    assert!(!dir.path().join("report.html").exists());
}

#[test]
fn a_run_without_rows_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("run.json"), "{}").unwrap();
    std::fs::write(dir.path().join("rows.jsonl"), "").unwrap();
    let (written, page, _) = written(dir.path());
    assert_eq!((written.rows, written.total, written.figures.len()), (0, None, 0));
    assert!(page.contains("<title>Evaluation</title>"));
    if let Some(browser) = Browser::find() {
        let dom = browser.dom(&written.page, "");
        assert!(dom.contains("no row of 0 is like this"), "{dom}");
    }
}

#[test]
fn a_browser_shows_tables_figures_and_the_rows_asked_for() {
    let Some(browser) = Browser::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), rows().len());
    let (written, ..) = written(dir.path());

    let dom = browser.dom(&written.page, "");
    assert!(dom.contains("<title>Evaluation of tiny &lt;model&gt;</title>"), "a script of the model's ran");
    assert!(dom.matches("<svg class=\"fig\"").count() >= 7 && dom.contains("depth 50 %: 0.00 % (rows: 1)"));
    // Failures come first: two wrong rows and a refused one, none of them opened.
    assert_eq!(listed(&dom), ["wrong", "wrong", "refused"]);
    assert!(dom.contains("1–3 of 3 (14 rows)") && !dom.contains("class=\"detail\""));

    let dom = browser.dom(&written.page, "#method=full&show=wrong");
    assert_eq!(listed(&dom), ["wrong", "wrong"]);
    assert!(dom.contains("&lt;/script&gt;&lt;script&gt;document.title='owned'"), "{dom}");
    assert_eq!(listed(&browser.dom(&written.page, "#method=reattention&show=wrong")), [""; 0]);
    assert_eq!(listed(&browser.dom(&written.page, "#show=right&length=4096")), ["right"; 3]);
    // Found by what was expected, under both methods.
    assert_eq!(listed(&browser.dom(&written.page, "#show=all&q=14146")), ["wrong", "right"]);
    assert_eq!(listed(&browser.dom(&written.page, "#show=all&suite=perplexity")), ["unscored"; 2]);

    // Row 2 of the journal is right: it is shown since it is named, with evidence and the other method's answer.
    let dom = browser.dom(&written.page, "#row=2");
    let detail = &dom[dom.find("class=\"detail\"").expect("the row is open")..];
    for said in [
        "What is the locker code of Ada Winter?",
        "haystack:7",
        "62.5 %",
        "is <mark>10512</mark>.",
        "full: right",
    ] {
        assert!(detail.contains(said), "{said} not in {detail}");
    }
    // What a row of the other suite holds is shown as signs.
    let dom = browser.dom(&written.page, "#row=14");
    assert!(dom.contains("null ⟨U+0000⟩, turned ⟨U+202E⟩txet, &lt;!--&lt;script&gt;"), "{dom}");
}

#[test]
fn rows_are_reached_by_keys() {
    let Some(browser) = Browser::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), rows().len());
    let (_, page, _) = written(dir.path());
    // Down to the second row, which is opened, and down again: its button has the keys' attention, not its detail.
    let press = r#"<script>
        const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        document.querySelector("[data-row]").focus();
        press("ArrowDown");
        document.activeElement.click();
        press("ArrowDown");
        document.querySelector("h1").textContent = "at " + document.activeElement.textContent;
        press("/");
        document.querySelector("h1").textContent += ", then in " + document.activeElement.id;
    </script>"#;
    let file = dir.path().join("pressed.html");
    std::fs::write(&file, page + press).unwrap();
    let dom = browser.dom(&file, "");
    assert!(dom.contains("<h1>at refused, then in search</h1>"), "{dom}");
    let expanded: Vec<&str> = dom.split("aria-expanded=\"").skip(1).map(|b| &b[..4]).collect();
    assert_eq!(expanded, ["fals", "true", "fals"]);
}

#[test]
fn screenshots_are_of_the_size_asked_and_not_blank() {
    let Some(browser) = Browser::find() else { return };
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), rows().len());
    let (written, ..) = written(dir.path());
    for (width, height, dark) in [(1280, 1600, false), (1280, 1600, true), (600, 1200, false)] {
        let image = browser.screenshot(&written.page, dir.path(), (width, height), dark);
        assert_eq!((image.width, image.height), (width, height));
        assert!(image.colours > 50, "{} colours: is the page blank?", image.colours);
        assert_eq!(image.brightness < 0.3, dark, "brightness {} for dark = {dark}", image.brightness);
    }
}

/// What the list of rows says of each.
fn listed(dom: &str) -> Vec<String> {
    let buttons = dom.split("data-row=").skip(1);
    buttons.filter_map(|b| Some(b.split_once('>')?.1.split_once('<')?.0.to_string())).collect()
}

struct Browser {
    program: PathBuf,
}

struct Image {
    width: u32,
    height: u32,
    /// Different colours.
    colours: usize,
    /// Of all pixels together, from 0 to 1.
    brightness: f64,
}

impl Browser {
    fn find() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
        let in_path = || {
            std::env::split_paths(&path)
                .flat_map(|dir| names.map(|n| dir.join(n)))
                .find(|file| file.is_file())
        };
        let program = std::env::var_os("CHROME").map(PathBuf::from).or_else(in_path);
        if program.is_none() {
            skipped::skipped("browser", "skipped: no Chromium");
        }
        program.map(|program| Self { program })
    }

    /// The page's elements after its scripts have run, without these; `hash` is what stands behind its address.
    fn dom(&self, page: &Path, hash: &str) -> String {
        let mut dom = self.run(page, hash, &["--dump-dom".into()]);
        dom.truncate(dom.find("<script").expect("the page has scripts"));
        dom
    }

    fn screenshot(&self, page: &Path, dir: &Path, (width, height): (u32, u32), dark: bool) -> Image {
        let file = dir.join("screenshot.png");
        let mut args = vec![
            format!("--screenshot={}", file.display()),
            format!("--window-size={width},{height}"),
            "--hide-scrollbars".into(),
        ];
        args.extend(dark.then(|| "--blink-settings=preferredColorScheme=0".to_string()));
        self.run(page, "", &args);
        let file = std::io::BufReader::new(std::fs::File::open(file).expect("a screenshot"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let pixels: Vec<&[u8]> = pixels[..info.buffer_size()].chunks(info.color_type.samples()).collect();
        let sum: f64 = pixels.iter().map(|p| f64::from(p[0]) + f64::from(p[1]) + f64::from(p[2])).sum();
        Image {
            width: info.width,
            height: info.height,
            brightness: sum / (3.0 * 255.0 * pixels.len() as f64),
            colours: pixels.into_iter().collect::<std::collections::HashSet<_>>().len(),
        }
    }

    /// What the browser prints. One that does not come to an end is stopped, and the test fails.
    fn run(&self, page: &Path, hash: &str, args: &[String]) -> String {
        let profile = tempfile::tempdir().unwrap();
        let (out, err) = (profile.path().join("out"), profile.path().join("err"));
        let mut browser = Command::new(&self.program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--virtual-time-budget=5000"])
            .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
            .args(args)
            .arg(format!("file://{}{hash}", page.display()))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&out).unwrap())
            .stderr(std::fs::File::create(&err).unwrap())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let status = loop {
            match browser.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() > Duration::from_secs(180) => {
                    browser.kill().unwrap();
                    panic!("{} took more than 180 s", self.program.display());
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let said = std::fs::read_to_string(&err).unwrap_or_default();
        assert!(status.success(), "{status}: {said}");
        String::from_utf8_lossy(&std::fs::read(&out).unwrap()).into_owned()
    }
}
