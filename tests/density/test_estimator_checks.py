"""The estimators keep scikit-learn's contract: its own checks, run on all of them."""

from sklearn.utils.estimator_checks import parametrize_with_checks

from cflow.density import ConditionalFlowDensity, FlowDensity, FlowOutlierDetector

SMALL = {"flow_options": {"layers": 2, "hidden": (8,)}, "max_steps": 4, "check_every": 2, "random_state": 0}
FLAT = "it fits 27 rows in 30 dimensions, where a density has no bound, and which is refused"
NEEDS_Y = "it asks score_samples(X) for the density of y given X, which depends on y"
HELD_OUT = "it wants a share of the training rows flagged; here the share of new rows is kept, by rows held out"
EXPECTED = {
    FlowDensity: {"check_sample_weight_equivalence_on_dense_data": FLAT},
    ConditionalFlowDensity: {
        "check_sample_weight_equivalence_on_dense_data": FLAT,
        "check_methods_sample_order_invariance": NEEDS_Y,
        "check_methods_subset_invariance": NEEDS_Y,
    },
    FlowOutlierDetector: {"check_outliers_fit_predict": HELD_OUT, "check_outliers_train": HELD_OUT},
}


@parametrize_with_checks(
    [
        FlowDensity(**SMALL),
        ConditionalFlowDensity(**SMALL),
        FlowOutlierDetector(FlowDensity(**SMALL), contamination=0.1),
    ],
    expected_failed_checks=lambda estimator: EXPECTED[type(estimator)],
)
def test_estimators_keep_the_contract(estimator, check):
    check(estimator)
