//! `report.junit.xml`: a gate is a test case, and so is every precision (it runs, or is skipped and says why).
//!
//! It is red where the exit status is: when a gate failed, or an engine that was required did not run. What cannot run here fails
//! the gates that are for it.

use std::io::Write;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::{Report, format};

/// Writes the report as JUnit XML, which continuous integration servers show beside other tests.
pub fn junit(report: &Report, to: impl Write) -> Result<(), quick_junit::SerializeError> {
    let model = format::file_name(&report.model.path);
    let mut suite = TestSuite::new(model);
    suite.add_property(("model_hash", report.model.hash.as_str()));
    suite.add_property(("data_hash", report.dataset.hash.as_str()));
    suite.add_property(("random_data", if report.rests_on_random_data() { "true" } else { "false" }));
    for precision in &report.precisions {
        let mut status = TestCaseStatus::success();
        if let Some(error) = &precision.error {
            let is_error = || TestCaseStatus::non_success(NonSuccessKind::Error);
            status = if precision.required { is_error() } else { TestCaseStatus::skipped() };
            status.set_message(error.as_str());
        }
        let mut case = TestCase::new(format!("{} runs on {}", precision.precision, precision.backend), status);
        case.set_classname(format!("{model}.{}", precision.precision));
        suite.add_test_case(case);
    }
    for gate in &report.verdict.gates {
        let mut status = TestCaseStatus::success();
        if !gate.result.passed {
            status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(format!("{}: {}", gate.result.subject(), gate.result.shown()));
        }
        let mut case = TestCase::new(gate.condition(), status);
        case.set_classname(format!("{model}.{}", gate.precision));
        if let Some(remark) = gate.remark() {
            case.set_system_out(remark);
        }
        suite.add_test_case(case);
    }
    let mut document = quick_junit::Report::new("calib");
    document.add_test_suite(suite);
    document.serialize(to)
}

/// Writes the JUnit XML of a run that ended without a report.
pub fn failed_junit(model: &str, reason: &str, to: impl Write) -> Result<(), quick_junit::SerializeError> {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_message(reason);
    let mut case = TestCase::new("the run ends with a report", status);
    case.set_classname(model);
    let mut suite = TestSuite::new(model);
    suite.add_test_case(case);
    let mut document = quick_junit::Report::new("calib");
    document.add_test_suite(suite);
    document.serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example::{Size, report};

    #[test]
    fn gates_and_precisions_are_test_cases_with_their_outcome() {
        let mut report = report(&Size { layers: 0, flips: 0 });
        report.precisions[1].error = Some("no <kernel> & \"such\"".into());
        let passed = report.verdict.gates.iter_mut().find(|gate| gate.result.passed).unwrap();
        passed.result.note = Some("3 values are NaN on both sides".to_owned());
        let mut xml = Vec::new();
        junit(&report, &mut xml).unwrap();
        assert!(String::from_utf8_lossy(&xml).contains(", but 3 values are NaN on both sides</system-out>"));
        let read = quick_junit::Report::deserialize_from_str(std::str::from_utf8(&xml).unwrap()).unwrap();
        let failed = report.verdict.gates.iter().filter(|gate| !gate.result.passed).count();
        let mut required = report.clone();
        required.precisions[1].required = true;
        let mut red = Vec::new();
        junit(&required, &mut red).unwrap();
        assert!(String::from_utf8(red).unwrap().contains("errors=\"1\""));
        assert_eq!(crate::report::Verdict::new(Vec::new(), &required.precisions).passed, Some(false));
        assert_eq!(crate::report::Verdict::new(Vec::new(), &report.precisions).passed, None);
        assert_eq!(read.tests, report.precisions.len() + report.verdict.gates.len());
        assert_eq!((read.failures, read.errors), (failed, 0));
        assert!(failed > 0);
        let errors: Vec<_> = read.test_suites[0]
            .test_cases
            .iter()
            .filter_map(|case| match &case.status {
                TestCaseStatus::Skipped { message, .. } => message.as_ref(),
                _ => None,
            })
            .collect();
        assert!(errors.iter().any(|m| m.as_str() == "no <kernel> & \"such\""), "{errors:?}");
    }
}
