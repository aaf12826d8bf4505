use rollcall_agent_core::tensor::TensorData;
use rollcall_shared::digest::Digest;
use rollcall_shared::feedback::FeedbackItem;
use rollcall_shared::limits::{CLASSES_MAX, SEGMENTS_MAX};
use rollcall_shared::report::{ClassCounts, Moments};
use rollcall_shared::version::Version;

use super::*;

fn key(generation: u64, role: Role) -> SeriesKey {
    SeriesKey {
        model: ModelName::new("digits").unwrap(),
        version: VersionRef {
            version: Version::new(1, 0, 0),
            digest: Digest::of(b"x"),
        },
        role,
        generation: Generation(generation),
    }
}

fn series(recorder: &Recorder, generation: u64, role: Role) -> Arc<SeriesRecorder> {
    recorder.series(key(generation, role), Features::default())
}

/// An answer of one score row each.
fn scores(rows: &[[f32; 2]]) -> Vec<Tensor> {
    vec![Tensor {
        name: "scores".to_owned(),
        shape: vec![rows.len(), 2],
        data: TensorData::Fp32(rows.concat()),
    }]
}

fn answer(recorder: &Recorder, series: &Arc<SeriesRecorder>, outputs: &[Tensor], origin: &Origin) {
    let rows = Rows::of(outputs);
    series.record_answer(Duration::from_millis(2), &[], &rows, origin);
    recorder.remember(series, &rows, origin);
}

fn item(json: &str) -> FeedbackItem {
    serde_json::from_str(json).unwrap()
}

fn window(recorder: &Recorder, role: Role) -> Series {
    let window = recorder.take_window();
    let mut of_role = window.series.into_iter().filter(|s| s.role == role);
    of_role.next().unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_nanos(1)
}

#[test]
fn a_window_is_taken_once_and_totals_keep_everything() {
    let recorder = Recorder::default();
    let series = series(&recorder, 1, Role::Candidate);
    let origin = recorder.origin("a", "a", None);
    answer(&recorder, &series, &[], &origin);
    series.record_failure(Failure::Failed, true, &origin, now());
    let window = recorder.take_window();
    assert_eq!(window.series.len(), 1);
    let counts = &window.series[0].counts;
    assert_eq!(
        (counts.requests, counts.errors, counts.fallbacks),
        (2, 1, 1)
    );
    assert_eq!(recorder.take_window(), Window::default());
    series.record_failure(Failure::TimedOut, false, &origin, now());
    let totals = recorder.totals();
    let total = totals.values().next().unwrap();
    assert_eq!((total.counts.requests, total.counts.timeouts), (3, 1));
    assert_eq!(total.latency_sum, Duration::from_millis(2));
}

#[test]
fn who_fails_again_and_again_has_failed_once() {
    let recorder = Recorder::default();
    let series = series(&recorder, 1, Role::Stable);
    let segment = Some(series.segment("eu"));
    for id in ["1", "2", "3"] {
        let origin = recorder.origin(id, "ana", segment.clone());
        series.record_failure(Failure::Failed, false, &origin, now());
    }
    let origin = recorder.origin("4", "4", None);
    series.record_failure(Failure::TimedOut, false, &origin, now());
    let series = window(&recorder, Role::Stable);
    assert_eq!(
        (series.counts.failures(), series.counts.failed_keys),
        (4, 2)
    );
    let eu = &series.segments[0].counts;
    assert_eq!((eu.failures(), eu.failed_keys), (3, 1));
}

#[test]
fn rows_are_counted_by_class_and_by_how_sure_they_are() {
    let recorder = Recorder::default();
    let series = series(&recorder, 1, Role::Stable);
    let origin = recorder.origin("a", "a", None);
    answer(
        &recorder,
        &series,
        &scores(&[[0.92, 0.08], [0.28, 0.72], [0.0, 1.0]]),
        &origin,
    );
    // More rows than are counted under one lock.
    answer(&recorder, &series, &scores(&[[0.5, 0.5]; 40]), &origin);
    let quality = window(&recorder, Role::Stable).counts.quality;
    let named: Vec<_> = quality
        .named
        .iter()
        .map(|(c, n)| (c.as_str(), *n))
        .collect();
    assert_eq!(named, [("0", 41), ("1", 2)]);
    // 0.72 is in the bin from 0.7 to 0.75; a certain 1 is in the last.
    let mut bins = [0; 20];
    (bins[18], bins[14], bins[19], bins[10]) = (1, 1, 1, 40);
    assert_eq!(quality.scores, bins);
}

#[test]
fn classes_beyond_the_bound_are_counted_as_other() {
    let recorder = Recorder::default();
    let series = series(&recorder, 1, Role::Stable);
    let origin = recorder.origin("a", "a", None);
    let label = |text: String| {
        vec![Tensor {
            name: "label".to_owned(),
            shape: vec![1],
            data: TensorData::Bytes(vec![text.into_bytes()]),
        }]
    };
    for _ in 0..2 {
        for i in 0..CLASSES_MAX + 9 {
            answer(&recorder, &series, &label(format!("class {i}")), &origin);
        }
        let named = window(&recorder, Role::Stable).counts.quality.named;
        assert_eq!(named.len(), CLASSES_MAX + 1);
        assert_eq!((named["other"], named["class 7"]), (9, 1));
    }
}

#[test]
fn a_segment_has_counts_of_its_own_and_those_beyond_the_bound_share_one() {
    let recorder = Recorder::default();
    let (stable, candidate) = (
        series(&recorder, 1, Role::Stable),
        series(&recorder, 1, Role::Candidate),
    );
    for i in 0..SEGMENTS_MAX + 3 {
        let segment = Some(stable.segment(&format!("s{i:03}")));
        answer(
            &recorder,
            &stable,
            &scores(&[[0.9, 0.1]]),
            &recorder.origin("a", "a", segment),
        );
    }
    let segments = window(&recorder, Role::Stable).segments;
    assert_eq!(segments.len(), SEGMENTS_MAX);
    let last = &segments[SEGMENTS_MAX - 1];
    assert_eq!((last.name.as_str(), last.counts.requests), ("other", 4));
    assert_eq!(segments[0].counts.quality.named["0"], 1);
    assert_eq!(
        &*candidate.segment("s999"),
        "other",
        "versions share the names"
    );
}

#[test]
fn a_label_counts_for_the_version_and_the_segment_that_answered_and_for_the_shadow() {
    let recorder = Recorder::default();
    let (stable, shadow) = (
        series(&recorder, 1, Role::Stable),
        series(&recorder, 1, Role::Shadow),
    );
    let origin = recorder.origin("order-7", "ana", Some(stable.segment("eu")));
    answer(&recorder, &stable, &scores(&[[0.9, 0.1]]), &origin);
    recorder.remember_shadow(&shadow, &Rows::of(&scores(&[[0.2, 0.8]])), &origin);
    let joined = recorder.join(
        None,
        &[item(
            r#"{"id": "order-7", "label": 1, "kpis": {"spend": 12.5}}"#,
        )],
    );
    assert_eq!((joined.joined, joined.unknown), (1, 0));
    let both = recorder.take_window();
    let [stable, shadow] = &both.series[..] else {
        panic!("{} series", both.series.len());
    };
    let quality = &stable.segments[0].counts.quality;
    assert_eq!(*quality, stable.counts.quality);
    let counts = |predicted, actual, correct| ClassCounts {
        predicted,
        actual,
        correct,
    };
    assert_eq!(quality.labelled["0"], counts(1, 0, 0));
    assert_eq!(quality.labelled["1"], counts(0, 1, 0));
    let bin = quality.calibration[13];
    assert_eq!((bin.count, bin.correct), (1, 0));
    assert!((bin.confidence - 0.9).abs() < 1e-6);
    let spend = Moments {
        count: 1,
        sum: 12.5,
        squares: 156.25,
    };
    assert_eq!(quality.kpis["spend"], spend);
    // Money followed from the answer that the client got, and not from the shadow's.
    let of_shadow = &shadow.segments[0].counts.quality;
    assert_eq!(of_shadow.labelled["1"], counts(1, 1, 1));
    assert!(of_shadow.kpis.is_empty());
}

#[test]
fn a_shadow_that_is_slower_than_its_label_is_judged_all_the_same() {
    let recorder = Recorder::default();
    let (stable, shadow) = (
        series(&recorder, 1, Role::Stable),
        series(&recorder, 1, Role::Shadow),
    );
    let origin = recorder.origin("a", "a", None);
    answer(&recorder, &stable, &scores(&[[0.9, 0.1]]), &origin);
    recorder.join(None, &[item(r#"{"id": "a", "label": 1}"#)]);
    recorder.remember_shadow(&shadow, &Rows::of(&scores(&[[0.2, 0.8]])), &origin);
    let quality = window(&recorder, Role::Shadow).counts.quality;
    assert_eq!(quality.labelled["1"].correct, 1);
}

#[test]
fn feedback_that_comes_twice_or_for_nobody_is_not_counted() {
    let recorder = Recorder::default();
    let stable = series(&recorder, 1, Role::Stable);
    let origin = recorder.origin("a", "a", None);
    answer(&recorder, &stable, &scores(&[[0.9, 0.1]]), &origin);
    let nothing = recorder.origin("price", "price", None);
    answer(&recorder, &stable, &[], &nothing);
    let joined = recorder.join(
        None,
        &[
            item(r#"{"id": "a", "label": 0}"#),
            item(r#"{"id": "a", "label": 1, "kpis": {"spend": 1}}"#),
            item(r#"{"id": "a", "kpis": {"spend": 2}}"#),
            item(r#"{"id": "b", "label": 1}"#),
            item(r#"{"id": "a", "row": 3, "label": 1}"#),
            item(r#"{"id": "price", "label": 1}"#),
            item(r#"{"id": "price", "kpis": {"spend": 3}}"#),
        ],
    );
    assert_eq!(
        (
            joined.joined,
            joined.unknown,
            joined.duplicate,
            joined.refused
        ),
        (3, 2, 2, 1)
    );
    assert!(joined.why_refused.unwrap().contains("names no class"));
    let quality = window(&recorder, Role::Stable).counts.quality;
    assert_eq!(quality.labelled["0"].correct, 1);
    assert_eq!(
        quality.kpis["spend"],
        Moments {
            count: 2,
            sum: 4.0,
            squares: 10.0
        }
    );
    let (since_start, forgotten) = recorder.feedback();
    assert_eq!((since_start.joined, forgotten), (3, 0));
}

#[test]
fn feedback_for_one_model_leaves_the_others_alone() {
    let recorder = Recorder::default();
    let stable = series(&recorder, 1, Role::Stable);
    answer(
        &recorder,
        &stable,
        &scores(&[[0.9, 0.1]]),
        &recorder.origin("a", "a", None),
    );
    let items = [item(r#"{"id": "a", "label": 0}"#)];
    let other = ModelName::new("wine").unwrap();
    assert_eq!(recorder.join(Some(&other), &items).unknown, 1);
    let digits = ModelName::new("digits").unwrap();
    assert_eq!(recorder.join(Some(&digits), &items).joined, 1);
}

#[test]
fn the_rows_of_a_batch_are_told_apart_and_never_guessed() {
    let recorder = Recorder::default();
    let stable = series(&recorder, 1, Role::Stable);
    let origin = recorder.origin("a", "a", None);
    answer(
        &recorder,
        &stable,
        &scores(&[[0.9, 0.1], [0.2, 0.8]]),
        &origin,
    );
    let joined = recorder.join(
        None,
        &[
            item(r#"{"id": "a", "label": 0}"#),
            item(r#"{"id": "a", "row": 0, "label": 0}"#),
            item(r#"{"id": "a", "row": 1, "label": 0}"#),
            item(r#"{"id": "a", "row": 2, "label": 0}"#),
        ],
    );
    assert_eq!((joined.joined, joined.unknown), (2, 2));
    let quality = window(&recorder, Role::Stable).counts.quality;
    assert_eq!(quality.labelled["0"].actual, 2);
    assert_eq!(quality.labelled["0"].correct, 1);
}

#[test]
fn a_series_lives_until_no_route_and_no_remembered_answer_holds_it() {
    let recorder = Recorder::default();
    series(&recorder, 1, Role::Stable).record_shed(&recorder.origin("a", "a", None));
    assert_eq!(recorder.take_window().series.len(), 1);
    assert!(lock(&recorder.book).live.is_empty());
    let old = series(&recorder, 2, Role::Stable);
    answer(
        &recorder,
        &old,
        &scores(&[[0.9, 0.1]]),
        &recorder.origin("a", "a", None),
    );
    drop(old);
    assert_eq!(recorder.take_window().series.len(), 1);
    recorder.join(None, &[item(r#"{"id": "a", "label": 0}"#)]);
    let late = window(&recorder, Role::Stable);
    assert_eq!((late.generation, late.counts.requests), (Generation(2), 0));
    assert_eq!(late.counts.quality.labelled["0"].correct, 1);
}

#[test]
fn remembered_answers_never_take_the_room_of_new_series() {
    let recorder = Recorder::default();
    for generation in 0..=SERIES_REMEMBERED_MAX as u64 {
        let series = series(&recorder, generation, Role::Stable);
        let origin = recorder.origin(&generation.to_string(), "", None);
        answer(&recorder, &series, &scores(&[[0.9, 0.1]]), &origin);
    }
    let window = recorder.take_window();
    let left = SERIES_REMEMBERED_MAX + 1 - SERIES_PER_REPORT_MAX;
    assert_eq!(window.series_dropped, left as u64);
    assert!(lock(&recorder.book).live.is_empty());
    assert_eq!(recorder.feedback().1, SERIES_REMEMBERED_MAX as u64 + 1);
}

#[test]
fn more_series_than_a_report_holds_are_dropped_and_counted() {
    let recorder = Recorder::default();
    let held: Vec<_> = (0..SERIES_PER_REPORT_MAX as u64 + 3)
        .map(|generation| series(&recorder, generation, Role::Stable))
        .collect();
    let origin = recorder.origin("a", "a", None);
    held.iter().for_each(|series| series.record_shed(&origin));
    let window = recorder.take_window();
    assert_eq!(
        (window.series.len(), window.series_dropped),
        (SERIES_PER_REPORT_MAX, 3)
    );
}
