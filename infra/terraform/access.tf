# Each service account is one role, and each role reaches the folders of the bucket that its work needs.
locals {
  issuer = replace(aws_eks_cluster.this.identity[0].oidc[0].issuer, "https://", "")

  accounts = {
    train = { subject = "counterray:counterray-train", reads = [], writes = ["data", "runs"] }
    serve = { subject = "counterray:counterray-serve", reads = ["data", "runs"], writes = ["audits"] }
    ebs   = { subject = "kube-system:ebs-csi-controller-sa", reads = [], writes = [] }
  }

  of_bucket = { for name, account in local.accounts : name => account if name != "ebs" }
}

data "aws_iam_policy_document" "assumed_by" {
  for_each = toset(["eks", "ec2"])

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["${each.key}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "assumed_by_pod" {
  for_each = local.accounts

  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [aws_iam_openid_connect_provider.this.arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = ["system:serviceaccount:${each.value.subject}"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "pod" {
  for_each = local.accounts

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.assumed_by_pod[each.key].json
}

data "aws_iam_policy_document" "bucket_access" {
  for_each = local.of_bucket

  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]

    # Without a prefix only to tell a bucket that is gone from one that is empty.
    condition {
      test     = "StringLikeIfExists"
      variable = "s3:prefix"
      values   = [for folder in concat(each.value.reads, each.value.writes) : "${folder}/*"]
    }
  }

  statement {
    sid     = "Read"
    actions = ["s3:GetObject"]

    resources = [
      for folder in concat(each.value.reads, each.value.writes) : "${aws_s3_bucket.this.arn}/${folder}/*"
    ]
  }

  statement {
    sid       = "Write"
    actions   = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = [for folder in each.value.writes : "${aws_s3_bucket.this.arn}/${folder}/*"]
  }

  statement {
    sid       = "Key"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.this.arn]
  }
}

resource "aws_iam_role_policy" "bucket_access" {
  for_each = local.of_bucket

  name   = "bucket"
  role   = aws_iam_role.pod[each.key].id
  policy = data.aws_iam_policy_document.bucket_access[each.key].json
}

resource "aws_iam_role_policy_attachment" "ebs" {
  role       = aws_iam_role.pod["ebs"].name
  policy_arn = "arn:aws:iam::aws:policy/service-role/AmazonEBSCSIDriverPolicy"
}
