"""Twelve questions in Chinese and Japanese, each with one right note among 2,000."""

# ruff: noqa: E501, SIM905 - CJK counts double, word lists read better as text
import random

import pytest

import qmd

RIGHT = {
    "如何设置文件权限": "# chmod 的用法\n\n在 Linux 上设置文件的权限要用 chmod 命令,例如 chmod 644。目录的权限要加上 x。",
    "怎样分配内存": "# C 语言笔记\n\nmalloc 函数用来分配内存,用完以后要用 free 释放,否则会发生泄漏。",
    "ファイルの権限を変更する方法": "# Linux メモ\n\nchmod コマンドでファイルの権限を変更できます。所有者は chown で変えます。",
    "数据库备份怎么恢复": "# 运维手册\n\n先停止服务,再用 pg_restore 把数据库的备份恢复到新的实例,最后核对行数。",
    "猫为什么怕水": "# 宠物\n\n猫的毛湿了以后很难干,体温会下降,所以大多数猫怕水。",
    "红烧肉要炖多久": "# 家常菜\n\n红烧肉先煎出油,加酱油和冰糖,小火炖一个半小时左右最软烂。",
    "签证需要哪些材料": "# 出国准备\n\n申请签证的材料有护照、照片、银行流水和在职证明,提前两个月递交。",
    "杜甫写过哪些关于战争的诗": "# 唐诗\n\n杜甫亲历战乱,《春望》《兵车行》《石壕吏》都是他描写战争的诗。",
    "味噌汁の作り方": "# 朝ごはん\n\n出汁を温め、豆腐とわかめを入れ、火を止めてから味噌を溶くのが味噌汁の作り方の基本。",
    "新幹線の予約を取り消すには": "# 旅行\n\n新幹線の予約はアプリの一覧から選び、発車前なら手数料を払って取り消すことができる。",
    "確定申告の締め切りはいつ": "# 税金\n\n確定申告の締め切りは毎年三月十五日。控除の書類は二月中にそろえる。",
    "データベースの接続が切れる原因": "# 障害記録\n\nデータベースへの接続が夜中に切れる原因は、プロキシの無通信タイムアウトだった。",
}
SUBJECTS = {
    "zh": (
        "桌子 窗户 电影 火车 合同 会议 面包 咖啡 邻居 医院 眼镜 手机 电池 键盘 屏幕 书店 老师 考试 论文 翻译 足球 游泳 山路 河流 "
        "雪景 月亮 故事 画展 剧本 工资 房租 保险 快递 文件 目录 服务器 网络 内存 缓存 日志 权限 数据库 接口 配置 备份 线程 菜谱 旅行 诗歌 历史 宠物 音乐 花园 天气"
    ).split(),
    "ja": "ファイル フォルダ サーバー ネットワーク メモリ ログ 権限 データベース 設定 予約 料理 旅行 歴史 猫 税金 音楽 庭 天気".split(),
    "en": "file folder server network memory cache log permission database config backup recipe travel poem cat".split(),
}
# Everyday sentences, written without a look at the questions; subjects and words may be the same.
SENTENCES = {
    "zh": [
        "今天下午和同事聊了{a},大家意见不一。",
        "{a}比去年好多了,不过{b}还是老样子。",
        "周末打算研究一下{b}。",
        "我对{a}一直很感兴趣,小时候就常听人说起。",
        "{b}的说明书写得太长,看了半天没看懂。",
        "朋友推荐了一本关于{a}的书,写得很生动。",
        "为了{a},我们改了三次计划。",
        "昨天的会上有人提到{b},没有时间细谈。",
        "据说{a}和{b}以前是分开管理的。",
        "这份清单里少了{b},下次补上。",
        "怎么才能把{a}讲清楚?先画一张图。",
        "{b}需要更多的时间和材料。",
        "负责{a}的人换了,联系方式见附件。",
        "写到{b}的时候停电了,只好明天继续。",
    ],
    "ja": [
        "昨日は友人と{a}の話で盛り上がった。",
        "{a}は去年より良くなったが、{b}は変わらない。",
        "週末に{b}を調べる予定だ。",
        "{a}の説明書は長すぎて読めなかった。",
        "会議で{b}が話題になった。",
        "{a}と{b}は別々に管理されている。",
        "この一覧には{b}が足りない。",
        "どうすれば{a}を分かりやすく伝えられるだろうか。",
        "{b}にはもっと時間と準備が必要だ。",
        "{a}の担当者が変わったので連絡先を更新する。",
        "図書館で{b}についての本を借りた。",
        "{a}のことは来月もう一度考えたい。",
    ],
    "en": [
        "We talked about the {a} over lunch.",
        "The {a} is better than last year, the {b} is not.",
        "Somebody borrowed the manual of the {b}.",
        "More time is needed for the {a}.",
        "The {b} was mentioned in the meeting.",
    ],
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rng = random.Random(7)
    folder = tmp_path_factory.mktemp("cjk")
    for number in range(2000 - len(RIGHT)):
        language = rng.choice(["zh", "zh", "ja", "ja", "en"])
        a, b = rng.sample(SUBJECTS[language], 2)
        lines = [s.format(a=a, b=b) for s in rng.sample(SENTENCES[language], 4)]
        (folder / f"{number:04d}.md").write_text(f"# {a} {number}\n\n" + "\n".join(lines), encoding="utf-8")
    for number, text in enumerate(RIGHT.values()):
        (folder / f"right{number}.md").write_text(text, encoding="utf-8")
    with qmd.open(folder.parent / "cjk.sqlite") as opened:
        opened.add(folder, embed=False)
        yield opened


def test_the_right_note_is_found_first(index):
    assert len(index.ls()) == 2000
    for search in (index.search, index.query):
        ranks = {}
        for number, question in enumerate(RIGHT):
            found = [hit.path for hit in search(question)]
            ranks[question] = found.index(f"right{number}.md") + 1 if f"right{number}.md" in found else 99
        assert set(ranks.values()) == {1}, ranks


@pytest.mark.parametrize("number, question", list(enumerate(RIGHT)))
def test_what_matched_is_marked(index, number, question):
    hit = next(hit for hit in index.search(question) if hit.path == f"right{number}.md")
    assert all(set(hit.snippet[a:b]) <= set(question) for a, b in hit.marks)
    assert hit.marks
