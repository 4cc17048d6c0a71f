"""What `pocket_rounds.yaml` names: the first answer comes back in the second question."""


def ask(
    doc, lmms_eval_specific_kwargs, previous_output=None, round_idx=None, previous_round_info=None
):
    end = lmms_eval_specific_kwargs["end"]
    if round_idx is None:
        return doc["question"] + end
    if round_idx == 1:
        assert previous_round_info is None
        return (
            [doc["image"]],
            doc["question"] + end,
            False,
            previous_output,
            {"seen": previous_output},
        )
    assert previous_round_info == {"seen": previous_output[:1]}
    return None, None, True, previous_output, previous_round_info


def judged(doc, results):
    first, second = results[0]
    return {"agreed": float(first == second == doc["answer"])}
