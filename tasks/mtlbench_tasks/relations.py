"""The relations of the two Chinese relation-extraction sets, as their files write them, in Chinese."""

from __future__ import annotations

SANWEN = {
    "unknown": "未知", "Create": "创造", "Use": "使用", "Near": "邻近", "Located": "位于", "Ownership": "占有",
    "Social": "社会关系", "Family": "家庭关系", "General-Special": "一般与特殊", "Part-Whole": "部分与整体",
}  # fmt: skip
FINRE = {
    "unknown": "未知",
    **{word: word for word in (
        "注资", "拥有", "纠纷", "自己", "增持", "重组", "买资", "签约", "持股", "交易", "入股",
        "转让", "成立", "分析", "合作", "帮助", "发行", "商讨", "合并", "竞争", "订单", "减持",
        "合资", "收购", "借壳", "欠款", "被发行", "被转让", "被成立", "被注资", "被持股", "被拥有", "被收购",
        "被帮助", "被借壳", "被买资", "被欠款", "被增持", "拟收购", "被减持", "被分析", "被入股", "被拟收购",
    )},
}  # fmt: skip
