"""Five texts and seven questions on them."""

from __future__ import annotations

TEXTS = {
    "bridge": "The bridge was built in 1874 by the engineer of the county, of stone from the old town.",
    "river": "The river rises in the mountains and reaches the sea near the old town.",
    "memory": "Memories are keys and values; the reader reads them while the answer is being written.",
    "tabs": "Cafes have tabs and spaces. The old town has seven of them, and a county library of 11 rooms.",
    "sea": "The sea is 23 miles away. Boats leave at five, and the engineer rises early to see them.",
}
QUESTIONS = [
    {
        "id": "q1",
        "question": "Who built the bridge?",
        "answers": ["the engineer of the county", "engineer"],
        "references": ["bridge"],
    },
    {"id": "q2", "question": "Where does the river rise?", "answers": ["in the mountains"], "references": ["river"]},
    {"id": "q3", "question": "What are memories?", "answers": ["keys and values"], "references": ["memory"]},
    {"id": "q4", "question": "How many cafes has the old town?", "answers": ["seven"], "references": ["tabs"]},
    {"id": "q5", "question": "How far is the sea?", "answers": ["23 miles"], "references": ["sea"]},
    {
        "id": "q6",
        "question": "When do boats leave, and from where, and what for?",
        "answers": ["at five"],
        "references": ["sea"],
    },
    {"id": "q7", "question": "How many rooms?", "answers": ["11 rooms", "11"], "references": ["tabs"]},
]
