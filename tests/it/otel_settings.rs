//! Where spans go, how and as whose: said in code, else by the standard variables.

use std::io::Write;

use inflight::{
    Tracker,
    otel::{Exporter, Protocol},
};

use crate::{
    receiver::{Receiver, Taken},
    stage::{DEADLINE, child},
};

const CHILD: &str = "INFLIGHT_TEST_OTEL";

/// Ends one op, where the environment says.
#[test]
fn sends_a_span_if_told_to() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let tracker = Tracker::new("from the code");
    let exporter = Exporter::builder(&tracker).flush_within(DEADLINE).start();
    drop(tracker.begin("x"));
    exporter.shutdown();
    let totals = tracker.snapshot().totals;
    let said = (totals.spans_dropped, totals.spans_problem);
    writeln!(std::io::stdout(), "{} {:?}", said.0, said.1).unwrap();
}

fn with_variables(variables: &[(&str, &str)]) -> String {
    let told = [(CHILD, "1")];
    child(
        "otel_settings::sends_a_span_if_told_to",
        &[told.as_slice(), variables].concat(),
    )
}

#[test]
fn the_standard_variables_say_where_how_and_as_whom() {
    let receiver = Receiver::start();
    let traces = format!("{}/v1/traces", receiver.url);
    let all = [
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_SERVICE_NAME", "from-env"),
        ],
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.as_str()),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=from-env,x=y"),
        ],
        vec![
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", traces.as_str()),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
            ("OTEL_SERVICE_NAME", "from-env"),
        ],
    ];
    for mut variables in all {
        variables.push(("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=42"));

        let said = with_variables(&variables);

        assert!(said.contains("0 None"), "{said}");
        let mut taken = receiver.taken();
        assert_eq!(taken.spans.len(), 1, "{variables:?}");
        assert_eq!(taken.services, ["from-env"]);
        let kind = taken.headers[0]["content-type"].to_str().unwrap();
        let wanted = variables.contains(&("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"));
        assert_eq!(kind == "application/grpc", wanted, "{kind}");
        assert_eq!(taken.headers[0]["x-tenant"], "42");
        *taken = Taken::default();
    }
    for (name, value) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ] {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url.as_str());

        let said = with_variables(&[endpoint, (name, value)]);

        assert!(said.contains(&format!("Some(\"{name}={value}")), "{said}");
        assert_eq!(receiver.taken().requests, 0);
    }
}

#[test]
fn settings_in_code_go_before_the_variables_and_headers_travel_both_ways() {
    let receiver = Receiver::start();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let tracker = Tracker::new("tracker");
        let exporter = Exporter::builder(&tracker)
            .endpoint(&receiver.url)
            .protocol(protocol)
            .header("X-Tenant", "42")
            .service_name("named")
            .flush_within(DEADLINE)
            .start();

        drop(tracker.begin("x"));
        exporter.shutdown();

        let mut taken = receiver.taken();
        assert_eq!((taken.spans.len(), taken.services.len()), (1, 1));
        assert_eq!(taken.services, ["named"]);
        let kind = taken.headers[0]["content-type"].to_str().unwrap();
        assert_eq!(
            kind == "application/grpc",
            protocol == Protocol::Grpc,
            "{kind}"
        );
        assert_eq!(taken.headers[0]["x-tenant"], "42");
        *taken = Taken::default();
    }
}
