"""Stand-in rows in the layout of every form of the registry: columns as published, contents ours."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (90, 40, 40)).save(out, "PNG")
    return out.getvalue()


PNG = png()
CELL = {"bytes": PNG, "path": None}  # an image in a parquet file
PAIRS = [{"question": "How long is AB?", "answer": "4"}, {"question": "Which?\n(A) 1\n(B) 2", "answer": "B"}]


def papers_rows(name: str) -> list[dict[str, Any]]:
    """A conversation each, with the image's path as LLaMA-Factory wants it."""
    return [
        {
            "messages": [
                {"role": "user", "content": "<image>" + pair["question"]},
                {"role": "assistant", "content": pair["answer"]},
            ],
            "images": [f"./data/images/{name}/{k}.png"],
        }
        for k, pair in enumerate(PAIRS)
    ]


def schema_rows(**more: Any) -> list[dict[str, Any]]:
    """Rows in the schema, and other columns."""
    return [
        {"problem": "<image>" + pair["question"], "answer": pair["answer"], "images": [CELL], **more}
        for pair in PAIRS
    ]


def asked(pairs: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    return [{**pair, **more} for pair in pairs]


MATHVERSE = asked(
    [
        {"problem_version": "Vision Only", "question_type": "multi-choice", "answer": "C"},
        {"problem_version": "Vision Dominant", "question_type": "multi-choice", "answer": "A"},
        {"problem_version": "Text Dominant", "question_type": "free-form", "answer": "12"},
    ],
    sample_index="1",
    problem_index="1",
    question="",
    image=CELL,
    metadata={"subject": "Plane Geometry"},
    query_wo="Choose.\nChoices:\nA:3\nB:4\nC:5",
    query_cot="Think, then choose.\nChoices:\nA:3\nB:4\nC:5",
    question_for_eval="Choose.",
)
TWO_OPTIONS = [{"choices": ["red", "blue"], "answer": "(A)"}, {"choices": ["1", "2"], "answer": "(B)"}]
FIRST_OR_LAST = [{"answer": "A"}, {"answer": "D"}]
YES_NO = [{"question": "Is there a dog?", "answer": "yes"}, {"question": "Is there a cat?", "answer": "no"}]
MMMU_IMAGES = dict.fromkeys(f"image_{k}" for k in range(3, 8))

# (name, form): the file, and its rows; of forms that are not the papers' conversations.
OTHERS: Mapping[tuple[str, int], tuple[str, Any]] = {
    ("virl39k", 0): ("data/train-00000-of-00001.parquet", schema_rows()),
    ("virl39k", 1): (
        "39Krelease.parquet",
        asked(
            [
                {"answer": "\\boxed{B}", "image": ["images/0.png"]},
                {"answer": "\\boxed{3}", "image": ["images/1.png"]},
            ],
            question="<image>Solve it.",
            PassRate_32BTrained=0.5,
            PassRate_7BBase=0.25,
            category="geometry",
            source="x",
            qid="q1",
        ),
    ),
    ("geometry3k", 1): (
        "data/test-00000-of-00001.parquet",
        schema_rows(id=1, choices=["3", "4"], ground_truth="B"),
    ),
    ("mmk12", 1): ("data/test-00000-of-00001.parquet", schema_rows()),
    ("mathverse", 1): ("testmini.parquet", MATHVERSE),
    ("mathverse_v", 1): ("testmini.parquet", MATHVERSE),
    ("mathvision", 1): (
        "data/test-00000-of-00001-3532b8d3f1b4047a.parquet",
        asked(
            [
                {"question": "Which is next?\n<image1>", "options": ["A", "B", "C"], "answer": "B"},
                {"question": "<image1> How many in all, with <image2>?", "options": [], "answer": "7"},
            ],
            id="1",
            image="images/1.jpg",
            decoded_image=CELL,
            solution=None,
            level=2,
            subject="counting",
        ),
    ),
    ("mathvista", 1): (
        "data/testmini-00000-of-00001-725687bf7a18d64b.parquet",
        asked(
            [
                {"choices": ["1", "2"], "answer": "2", "question_type": "multi_choice", "precision": None},
                {"choices": None, "answer": "1.2", "question_type": "free_form", "precision": 1.0},
            ],
            pid="1",
            question="How many?",
            image="images/1.jpg",
            decoded_image=CELL,
            unit=None,
            answer_type="float",
            metadata={"category": "math"},
            query="Hint: give a number.\nQuestion: How many?",
        ),
    ),
    ("wemath", 1): (
        "data/testmini-00000-of-00001-adbfe22dcd3558e6.parquet",
        asked(
            [
                {"option": "A. 3 cm; B. 4 cm; C. No correct answer", "answer": "B"},
                {"option": "A. 90; B. 60, or less; C. 30; D. No correct answer", "answer": "D"},
            ],
            **{"ID": "1", "split": "testmini", "knowledge concept": "Area", "question": "How long is it?"},
            **{"image_path": CELL, "key": "2steps_1", "question number": 1},
        ),
    ),
    ("dynamath", 1): (
        "data/sample1-00000-of-00001.parquet",
        asked(
            [
                {"ground_truth": "3.14", "answer_type": "float"},
                {"ground_truth": "B", "answer_type": "multiple choice"},
            ],
            id="1",
            question="What is it? A: 1 B: 2",
            image="images/1.png",
            decoded_image=CELL,
            subject="algebra",
            knowledge_level="high school",
        ),
    ),
    ("mmmu_pro", 1): (
        "standard (10 options)/test-00000-of-00001.parquet",
        asked(
            [
                {"options": "['<image 2>', 'none', 'all']", "image_2": CELL, "answer": "A"},
                {"options": "['0.5', '1.5']", "image_2": None, "answer": "B"},
            ],
            id="test_Art_1",
            question="Which fits <image 1>?",
            explanation="",
            image_1=CELL,
            **MMMU_IMAGES,
            img_type="['Paintings']",
            topic_difficulty="Easy",
            subject="Art",
        ),
    ),
    ("mmmu_pro", 2): (
        "vision/test-00000-of-00001.parquet",
        asked(
            [{"options": "['a', 'b']", "answer": "A"}, {"options": "['x', 'y', 'z']", "answer": "C"}],
            id="test_Art_1",
            image=CELL,
            subject="Art",
        ),
    ),
    ("clevr_counting", 0): (
        "data/train-00000-of-00001.parquet",
        [{"images": [CELL], "problem": "<image>How many items are there?", "answer": str(k)} for k in (3, 5)],
    ),
    ("superclevr_counting", 1): (
        "superclevr_test200_counting_problems.jsonl",
        [
            {
                "image_path": f"./images/{k}.png",
                "question": "How many items are there?",
                "ground_truth": k + 2,
            }
            for k in (0, 1)
        ],
    ),
    ("chartqa", 0): (
        "data/test-00000-of-00001-e2cd0b7a0f9eb20d.parquet",
        asked(
            [{"query": "How many?", "label": ["41.5"]}, {"query": "Who leads?", "label": ["Ghana"]}],
            image=CELL,
            human_or_machine=0,
        ),
    ),
    ("docvqa", 0): (
        "DocVQA/validation-00000-of-00001.parquet",
        asked(
            [{"answers": ["1996", "in 1996"]}, {"answers": ["Ms Ray"]}],
            questionId="1",
            question="Who, or when?",
            question_types=["form"],
            image=CELL,
            docId=1,
            ucsf_document_id="x",
            ucsf_document_page_no="1",
            data_split="val",
        ),
    ),
    ("textvqa", 0): (
        "data/validation-00000-of-00001.parquet",
        asked(
            [{"answers": ["stop"] * 6 + ["stop sign"] * 3 + ["go"]}, {"answers": ["12"] * 10}],
            image_id="1",
            question_id=1,
            question="What does it say?",
            question_tokens=["what"],
            image=CELL,
            image_width=64,
            image_height=48,
            dataset_name="textvqa",
            set_name="val",
        ),
    ),
    ("aokvqa", 0): (
        "data/train-00000-of-00001-d306bf3ad53b6618.parquet",
        asked(
            [
                {"choices": ["rain", "sun"], "correct_choice_idx": 1},
                {"choices": ["1", "2"], "correct_choice_idx": 0},
            ],
            image=CELL,
            question_id="x",
            question="What comes?",
            direct_answers="['sun']",
            difficult_direct_answer=False,
            rationales=["It is dry."],
        ),
    ),
    ("scienceqa", 0): (
        "data/train-00000-of-00001-1028f23e353fbe3e.parquet",
        asked(
            [{"image": CELL, "answer": 1}, {"image": None, "answer": 0}],
            question="Which is farther?",
            choices=["Chicago", "Miami"],
            hint="Look at the map.",
            task="closed choice",
            grade="grade2",
            subject="social science",
            topic="geography",
            category="maps",
            skill="read a map",
            lecture="",
            solution="",
        ),
    ),
    ("ai2d", 0): (
        "data/test-00000-of-00001.parquet",
        asked(
            [{"options": ["0", "1", "2"], "answer": "2"}, {"options": ["leaf", "root"], "answer": "0"}],
            question="Which part?",
            image=CELL,
        ),
    ),
    ("mmstar", 0): (
        "mmstar.parquet",
        asked(
            FIRST_OR_LAST,
            index=0,
            question="Which?\nOptions: A: a cat, B: a dog, C: a cow, D: none",
            image=PNG,
            category="coarse perception",
            l2_category="scene",
            meta_info={"source": "x"},
        ),
    ),
    ("blink", 0): (
        "Counting/val-00000-of-00001.parquet",
        asked(
            TWO_OPTIONS,
            idx="val_Counting_1",
            question="How do the two differ?",
            sub_task="Counting",
            image_1=CELL,
            image_2=CELL,
            image_3=None,
            image_4=None,
            prompt="How do the two differ?\n(A) ...",
        ),
    ),
    ("cvbench", 0): (
        "test_2d.parquet",
        asked(
            TWO_OPTIONS,
            idx=0,
            type="2D",
            task="Count",
            image=CELL,
            question="How many?",
            prompt="How many?\n(A) ...",
            source="ADE20K",
        ),
    ),
    ("vstar", 0): (
        "test_questions.jsonl",
        [
            {
                "image": f"images/{k}.png",
                "text": "What colour is it?\n(A) red\n(B) blue\nAnswer with the option's letter.",
                "category": "direct_attributes",
                "label": "AB"[k],
                "question_id": k,
            }
            for k in (0, 1)
        ],
    ),
    ("hrbench", 0): (
        "hr_bench_4k.parquet",
        asked(
            FIRST_OR_LAST,
            index=0,
            question="What colour is it?",
            category="single",
            **dict(zip("ABCD", ("red", "blue", "green", "A grey"), strict=True)),
            cycle_category="0",
            image="BASE64",
        ),
    ),
    ("pope", 0): (
        "Full/adversarial-00000-of-00001.parquet",
        asked(YES_NO, id="0", question_id="1", image_source="COCO_1", image=CELL, category="adversarial"),
    ),
    ("hallusionbench", 0): (
        "data/image-00000-of-00001.parquet",
        asked(
            [{"gt_answer": "1"}, {"gt_answer": "0"}],
            category="VD",
            subcategory="illusion",
            visual_input="1",
            set_id="0",
            figure_id="0",
            sample_note="",
            question_id="0",
            question="Are they of the same length?",
            gt_answer_details="They are.",
            filename="./x.png",
            image=CELL,
        ),
    ),
    ("mme", 0): (
        "data/test-00000-of-00001.parquet",
        asked(YES_NO, question_id="1.jpg", image=CELL, category="existence"),
    ),
    ("refcoco", 0): (
        "data/testA-00000-of-00001.parquet",
        asked(
            [
                {"answer": ["the left one", "man in red"], "bbox": [2.0, 3.0, 20.0, 30.5]},
                {"answer": ["dog"], "bbox": [0.0, 0.0, 64.0, 48.0]},
            ],
            question_id="1",
            image=CELL,
            question="Describe the region.",
            segmentation=[1.0, 2.0],
            iscrowd=0,
            file_name="COCO_train2014_1_0.jpg",
        ),
    ),
    ("coco", 0): (
        "annotations/instances_val2017.json",
        {
            "info": {},
            "licenses": [],
            "images": [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 48} for k in (0, 1)],
            "annotations": [
                {"image_id": k, "category_id": 1, "bbox": [5, 6, 7, 8], "iscrowd": 0} for k in (0, 1)
            ],
            "categories": [{"id": 1, "name": "dog"}],
        },
    ),
    ("llava_instruct", 0): (
        "llava_instruct_150k.json",
        [
            {
                "id": str(k),
                "image": f"{k}.png",
                "conversations": [
                    {"from": "human", "value": "What is it?\n<image>"},
                    {"from": "gpt", "value": "A bus."},
                ],
            }
            for k in (0, 1)
        ],
    ),
}
